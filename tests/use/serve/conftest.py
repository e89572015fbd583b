from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from mtbi.audio import codec
from mtbi.demo.speech import join
from mtbi.demo.world import DIGITS
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.mix import choose_aligner
from mtbi.use.serve.server import ServerLimits, make_app

Spoken = tuple[np.ndarray, list[tuple[float, float]]]
Serving = Callable[[FastAPI], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def run(untrained_run: TrainedRun) -> TrainedRun:
    """What the servers of these tests serve."""
    return untrained_run


@pytest.fixture(scope="session")
def spoken(speech: Path) -> Spoken:
    """A person saying "three five seven", `(samples,)` at 16 kHz, and when each word begins and ends, in seconds."""
    clips = [min((speech / "fsdd" / "audio").rglob(f"{DIGITS.index(word)}_*.flac")) for word in ("three", "five", "seven")]
    return join([codec.read(clip) for clip in clips], np.random.default_rng(0))


@pytest.fixture(scope="session")
def serving() -> Serving:
    """Runs an app; gives its address."""

    @contextmanager
    def serve(app: FastAPI) -> Iterator[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()

    return serve


@pytest.fixture(scope="session")
def address(run: TrainedRun, serving: Serving) -> Iterator[str]:
    """A running server."""
    with serving(make_app(run, ServerLimits(megabytes=1, waiting=2, new_tokens=24), choose_aligner("", run))) as url:
        yield url
