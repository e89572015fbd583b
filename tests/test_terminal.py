"""What libraries write to a terminal, or to a log in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtbi import recipe as recipes
from mtbi.llm.chat_format import resolve_llm
from mtbi.terminal import quiet_libraries

LOAD = (
    "import sys; from mtbi.terminal import quiet_libraries; quiet_libraries(); from transformers import AutoModelForCausalLM; "
)
LOAD += "AutoModelForCausalLM.from_pretrained(sys.argv[1])"


def test_loading_a_model_draws_no_bar_in_a_log() -> None:
    words = [sys.executable, "-c", LOAD, resolve_llm(recipes.load("demo").model.llm)]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True, cwd=Path(__file__).parents[1])
    assert "%|" not in done.stderr


def test_a_users_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    quiet_libraries()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"
