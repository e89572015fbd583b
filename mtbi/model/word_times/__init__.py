"""Word times by the cross-attention of a speech model. The aligner of `mtbi data align --model WHISPER`."""
