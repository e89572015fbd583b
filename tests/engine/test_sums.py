from __future__ import annotations

import torch

from mtbi.engine.log import Interval
from mtbi.engine.sums import add


def test_means_are_added_by_name() -> None:
    first = {"loss": torch.tensor([1.0, 2.0])}
    both = add(first, {"loss": torch.tensor([3.0, 1.0]), "loss_token_2": torch.tensor([4.0, 2.0])})
    assert {name: mean.tolist() for name, mean in both.items()} == {"loss": [4.0, 3.0], "loss_token_2": [4.0, 2.0]}
    assert first["loss"].tolist() == [1.0, 2.0]


def test_every_mean_is_logged_under_its_own_name() -> None:
    means = {"loss": torch.tensor([3.0, 2.0]), "loss_token_2": torch.tensor([1.0, 4.0])}
    means["task_agreement"] = torch.tensor([[1.0, 0.0, 3.0], [2.0, 0.0, 3.0]])
    values = Interval(means=means).values(["repeat", "unasked", "count"])
    assert values == {
        "train/loss": 1.5, "train/loss_token_2": 0.25, "task_agreement/repeat": 0.5, "task_agreement/count": 1.0,
    }  # fmt: skip
