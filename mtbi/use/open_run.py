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
from mtbi.model.speech_llm import SpeechLLMModule, add_frame_classes, build_speech_llm
from mtbi.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass
class TrainedRun:
    """A trained model, ready to answer, and what it was made from."""

    folder: Path
    checkpoint: Path
    recipe: Recipe
    model: SpeechLLMModule  #: in evaluation mode, on `device`
    chat: ChatFormat
    device: torch.device


def open_run(folder: Path | str, which: str = "best", device: str = "", as_trained: bool = False) -> TrainedRun:
    """Open a run's folder.

    `which` is `best`, `latest` or a checkpoint's path. `device` is `cpu` or `cuda`; without one, a GPU is used if there is one.
    With `as_trained` the model has the precision that it was trained in, on any device. Otherwise `precision: auto` of the
    recipe means the precision that suits the device.

    Raises UserError if the folder holds no run or no valid checkpoint, if the checkpoint does not fit the recipe, if this
    machine lacks the device, or if the LLM computes wrong results (`mtbi.model.self_test`).
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise UserError(
            f"{folder}: no recipe.yaml in it, so this is not the folder of a training run (`run_dir` of its recipe)"
        )
    recipe = recipes.load_saved(folder / "recipe.yaml")
    chosen = find_checkpoint(folder, which)
    torch_device = find_device(device)
    trained_in = recipe.precision
    if as_trained and (chosen / checkpoints.STATE).is_file():  # earlier versions did not record the precision
        trained_in = checkpoints.load_state(chosen).get("precision", trained_in)
    dtype = precision.of(trained_in, torch_device)
    model = build_speech_llm(recipes.in_use(recipe.model), recipe.loss, dtype, torch_device, tasks=1)
    put_weights(model, chosen)
    self_test.check(model.llm, recipe.model.llm)
    chat = read_chat(recipe)
    add_frame_classes(
        model.to(torch_device),
        recipe,
        chat.tokenizer.encode(recipe.train.start_silence, add_special_tokens=False),
        training=False,
    )
    return TrainedRun(folder, chosen, recipe, model.to(torch_device).eval(), chat, torch_device)


def find_device(name: str) -> torch.device:
    """A device by name. Without a name, a GPU if there is one. Raises UserError for a device that this machine lacks."""
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}. Leave it out, or choose cpu.") from error
    return torch.device(name)


def find_checkpoint(folder: Path, which: str) -> Path:
    """The folder of a checkpoint (see `open_run`). Raises UserError if there is none."""
    if which not in ("best", "latest"):
        if not (Path(which) / "trainable.safetensors").is_file():
            raise UserError(f"{which}: no checkpoint there; name `best`, `latest` or a folder such as {folder}/step-00000200")
        return Path(which)
    checkpoint = checkpoints.best(folder) if which == "best" else None
    checkpoint = checkpoint or checkpoints.latest_good(folder)
    if checkpoint is None and (checkpoint := checkpoints.latest_valid(folder)):
        log.warning("%s follows steps with a sudden high loss or without any loss, and it is the only one", checkpoint)
    if checkpoint is None:
        raise UserError(f"{folder}: no valid checkpoint yet; train first: deepspeed mtbi/train.py --recipe … run_dir={folder}")
    return Path(checkpoint)


def put_weights(model: SpeechLLMModule, checkpoint: Path) -> None:
    """Load the trained parameters. Raises UserError if their names or shapes are not those of the model."""
    saved = checkpoints.load_trainable(checkpoint)
    for name, value in model.named_parameters():  # earlier versions trained Whisper's sinusoids with its weights
        value.requires_grad_(value.requires_grad or (name in saved and name.endswith("embed_positions.weight")))
    if difference := checkpoints.parameter_difference(saved, model):
        raise UserError(f"{checkpoint}: made by another recipe, {difference}")
    model.load_state_dict(saved, strict=False)
