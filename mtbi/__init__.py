"""Multi-task behaviour imitation: training and use of speech LLMs.

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
    """Import torch and transformers only when they are needed: `import mtbi` takes milliseconds."""
    if name == "SpeechLLM":
        from mtbi.use.api import SpeechLLM

        return SpeechLLM
    if name == "Recipe":
        from mtbi.recipe import Recipe

        return Recipe
    raise AttributeError(f"module 'mtbi' has no attribute {name!r}")
