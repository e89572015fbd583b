"""`mtbi/train.py` with one fault: at step 6 the gradient of the first parameter is infinite. test_train.py runs it."""

from __future__ import annotations

import os
import sys
from typing import Any

from mtbi import train
from mtbi.engine.engine import Engine

FAULTY_STEP = 6
real_step = Engine.train_step


def faulty_step(engine: Engine, step: Any, number: int, stop: bool) -> Any:
    """One step of the real engine, with the fault."""
    if number + 1 != FAULTY_STEP:
        return real_step(engine, step, number, stop)
    hook = next(iter(engine.parameters.values())).register_hook(lambda gradient: gradient * float("inf"))
    try:
        return real_step(engine, step, number, stop)
    finally:
        hook.remove()


if __name__ == "__main__":
    Engine.train_step = faulty_step  # type: ignore[method-assign]
    status = train.main()
    sys.stdout.flush()
    os._exit(status)
