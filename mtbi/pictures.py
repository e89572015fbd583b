"""Figures without a display, and the similarity map of speech and words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtbi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure that needs no display. Raises UserError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'mtbi[plots]'") from error
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots()


def finish(made: Figure, path: Path) -> None:
    """Write the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=130)


def similarity(maps: dict[str, np.ndarray], words: list[str], seconds_per_frame: float, title: str, path: Path) -> None:
    """Cosine similarity `(frames, words)` between adapter outputs and the embeddings of the transcript's words, by arm."""
    made, single = figure(1.2 + 0.55 * len(words) * len(maps), 4.4)
    single.remove()
    axes = made.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    limit = max(float(np.abs(values).max()) for values in maps.values())
    for axis, (label, values) in zip(axes, maps.items(), strict=True):
        extent = (-0.5, len(words) - 0.5, len(values) * seconds_per_frame, 0.0)
        image = axis.imshow(
            values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent, interpolation="nearest"
        )
        axis.set_xticks(range(len(words)), words, rotation=60, ha="right", fontsize=8)
        axis.set_title(label, fontsize=9)
    axes[0].set_ylabel("seconds of speech")
    made.colorbar(image, ax=list(axes), label="cosine similarity")
    made.suptitle(title, fontsize=10)
    finish(made, path)
