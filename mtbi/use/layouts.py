"""The layouts of an export. A new layout is one more row of `LAYOUTS`, and a branch in `mtbi.use.export.export`."""

from __future__ import annotations

from dataclasses import dataclass

TRANSFORMERS = """\
```python
import mtbi.hf  # pip install mtbi
from transformers import pipeline

ask = pipeline("audio-text-to-text", model="…")
ask({"audio": "question.wav", "text": "What does the speaker want?"})
```
"""
VLLM = """\
```
vllm serve … --trust-remote-code   # runs ultravox_processing.py of this folder
```
"""


@dataclass(frozen=True)
class Layout:
    """One layout, as the command's help and the model card describe it."""

    summary: str  #: for `mtbi export --help`
    weights: str  #: of the model card: which weights the folder holds
    usage: str  #: of the model card: Markdown that shows how to load the folder


#: By the value of `mtbi export --layout`; the first one is the default.
LAYOUTS = {
    "trained": Layout(
        "the trained weights alone",
        "the trained ones alone; the frozen ones come from the models above",
        TRANSFORMERS,
    ),
    "merged": Layout("all weights, for transformers", "those of encoder, adapter and text LLM", TRANSFORMERS),
    "ultravox": Layout("all weights, for vLLM", "those of encoder, adapter and text LLM, in the layout of Ultravox", VLLM),
}
