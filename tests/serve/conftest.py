from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import uvicorn

from mtbi import recipe
from mtbi.model.speech_llm import build_speech_llm
from mtbi.serve.server import Limits, make_app
from mtbi.tasks.chat import ChatFormat, load_llm_tokenizer
from mtbi.trained import TrainedRun


@pytest.fixture(scope="session")
def run() -> TrainedRun:
    """The miniature speech LLM with an untrained adapter: what it reads it answers, what it hears it does not understand."""
    chosen = recipe.load("demo", ["plan.max_audio_seconds=5"])
    torch.manual_seed(0)
    model = build_speech_llm(chosen.model, chosen.loss, torch.float32, torch.device("cpu"), tasks=1)
    chat = ChatFormat(load_llm_tokenizer("demo"))
    return TrainedRun(Path("run"), Path("none"), chosen, model.eval(), chat, torch.device("cpu"))


@pytest.fixture(scope="session")
def address(run: TrainedRun) -> Iterator[str]:
    """A running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = make_app(run, Limits(megabytes=1, waiting=2, new_tokens=24))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
