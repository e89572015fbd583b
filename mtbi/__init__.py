"""Multi-task behaviour imitation: training and use of speech LLMs.

The folders follow the data, and each imports only from those before it:

    recipe      the settings of a run
    audio, llm  recordings as waveforms, the text LLM
    corpus      recordings become a checked manifest with word times
    answers     the text LLM answers prompts about the transcripts (`mtbi behave`)
    shards      audio, word times and answers become MDS shards with an index
    batches     the index becomes optimisation steps and packed tensors
    model       speech encoder, adapter and LLM, and the losses
    engine      DeepSpeed, checkpoints and logs; train.py is the training run from start to end
    use         a trained run in use: Python, chat, server, export (hf: its classes of transformers)
    benchmark   what a trained run can do
    demo        a miniature world that needs no download

A trained run in Python:

    from mtbi import Recipe, SpeechLLM

    llm = SpeechLLM.from_run("runs/demo")
    print(llm.ask("say the digits backwards", audio="digits.wav"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtbi import moved

if TYPE_CHECKING:
    from mtbi.recipe import Recipe
    from mtbi.use.api import SpeechLLM

__all__ = ["Recipe", "SpeechLLM"]

moved.install()


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when they are needed, so that `import mtbi` takes milliseconds."""
    if name == "SpeechLLM":
        from mtbi.use.api import SpeechLLM

        return SpeechLLM
    if name == "Recipe":
        from mtbi.recipe import Recipe

        return Recipe
    raise AttributeError(f"module 'mtbi' has no attribute {name!r}")
