"""Figures drawn without a display, and the similarity map of speech and words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtbi.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of `width` × `height` inches and its axes. Raises UserError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'mtbi[plots]'") from error
    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, drawn.subplots()


def finish(drawn: Figure, path: Path) -> None:
    """Write a figure to a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=130)


def similarity(maps: dict[str, np.ndarray], words: list[str], seconds_per_frame: float, title: str, path: Path) -> None:
    """Heat maps of cosine similarities `(frames, words)` between adapter outputs and word embeddings, one for each label."""
    drawn, single = figure(1.2 + 0.55 * len(words) * len(maps), 4.4)
    single.remove()
    axes = drawn.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    limit = max(float(np.abs(values).max()) for values in maps.values())
    for axis, (label, values) in zip(axes, maps.items(), strict=True):
        extent = (-0.5, len(words) - 0.5, len(values) * seconds_per_frame, 0.0)
        image = axis.imshow(
            values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent, interpolation="nearest"
        )
        axis.set_xticks(range(len(words)), words, rotation=60, ha="right", fontsize=8)
        axis.set_title(label, fontsize=9)
    axes[0].set_ylabel("seconds of speech")
    drawn.colorbar(image, ax=list(axes), label="cosine similarity")
    drawn.suptitle(title, fontsize=10)
    finish(drawn, path)
