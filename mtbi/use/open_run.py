"""A training run opened for use: its recipe, its newest or best checkpoint, and the speech LLM that they make."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from mtbi import recipe as recipes
from mtbi.engine import checkpoint as checkpoints
from mtbi.errors import UserError
from mtbi.llm import precision
from mtbi.llm.chat_format import ChatFormat, read_chat
from mtbi.model import self_test
from mtbi.model.speech_llm import SpeechLLMModule, build_speech_llm
from mtbi.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass
class TrainedRun:
    """What `evaluate`, `chat` and `export` work with."""

    folder: Path
    checkpoint: Path
    recipe: Recipe
    model: SpeechLLMModule  #: in evaluation mode, on `device`
    chat: ChatFormat
    device: torch.device


def open_run(folder: Path | str, which: str = "best", device: str = "", as_trained: bool = False) -> TrainedRun:
    """Read a run's folder. `which` is `best`, `latest` or a checkpoint's path; `device` is `cpu`, `cuda`;  empty: a GPU if any.

    With `as_trained` the model has the precision that it was trained in, on whatever device; else `precision: auto` suits the
    device. Raises UserError when the folder holds no run or no valid checkpoint, the checkpoint does not fit the recipe, the
    device is not there, or the LLM does not compute what it should (`mtbi.model.self_test`).
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(
            f"{folder}: no recipe.yaml in it, so this is not the folder of a training run (`run_dir` of its recipe)"
        )
    recipe = recipes.load(folder / "recipe.yaml")
    chosen = find_checkpoint(folder, which)
    place = find_device(device)
    trained_in = recipe.precision
    if as_trained and (chosen / checkpoints.STATE).is_file():  # those of earlier versions do not say what they were trained in
        trained_in = checkpoints.load_state(chosen).get("precision", trained_in)
    dtype = precision.of(trained_in, place)
    model = build_speech_llm(recipes.in_use(recipe.model), recipe.loss, dtype, place, tasks=1)
    put_weights(model, chosen)
    self_test.check(model.llm, recipe.model.llm)
    chat = read_chat(recipe)
    return TrainedRun(folder, chosen, recipe, model.to(place).eval(), chat, place)


def find_device(name: str) -> torch.device:
    """A device by name; without one, a GPU if there is any. Raises UserError for one that this machine lacks."""
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}. Leave it out, or say cpu.") from error
    return torch.device(name)


def find_checkpoint(folder: Path, which: str) -> Path:
    """The folder of a checkpoint; raises UserError when there is none."""
    if which not in ("best", "latest"):
        if not (Path(which) / "trainable.safetensors").is_file():
            raise UserError(f"{which}: no checkpoint there; name `best`, `latest` or a folder such as {folder}/step-00000200")
        return Path(which)
    found = checkpoints.best(folder) if which == "best" else None
    found = found or checkpoints.latest_good(folder)
    if found is None and (found := checkpoints.latest_valid(folder)):
        log.warning("%s follows steps with a sudden high loss, or without any, and there is no other checkpoint", found)
    if found is None:
        raise UserError(f"{folder}: no valid checkpoint yet; train first: deepspeed mtbi/train.py --recipe … run_dir={folder}")
    return Path(found)


def put_weights(model: SpeechLLMModule, checkpoint: Path) -> None:
    """Load the trained parameters; raises UserError where their names or shapes are not the model's."""
    saved = checkpoints.load_trainable(checkpoint)
    for name, value in model.named_parameters():  # earlier versions trained Whisper's sinusoids with its weights
        value.requires_grad_(value.requires_grad or (name in saved and name.endswith("embed_positions.weight")))
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters() if value.requires_grad}
    if wanted != {name: tuple(value.shape) for name, value in saved.items()}:
        other = sorted(wanted.items() ^ {(name, tuple(value.shape)) for name, value in saved.items()})
        raise UserError(
            f"{checkpoint}: made by another recipe, {len(other)} trainable parameters differ, the first is {other[0]}"
        )
    model.load_state_dict(saved, strict=False)
