"""What libraries write to a terminal, or to a log in its place."""

from __future__ import annotations

import os
import sys


def quiet_libraries() -> None:
    """Turn off warnings of tokenizers in child processes, and progress bars of Hugging Face's libraries in logs.

    Call it before transformers is imported. Values that the user has set stay.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
