from __future__ import annotations

import json

from mtbi.engine.guard import Guard
from mtbi.engine.sums import StepSums
from mtbi.recipe import TrainConfig


def sums(loss: float, skipped: int = 0, lost: bool = False, weight: float = 2.0) -> StepSums:
    weight = 0.0 if skipped == 2 else weight  # of two micro-batches
    return StepSums(weight * loss, weight, skipped, False, 0, False, lost, {}, 1.0)


def test_healthy_steps_are_let_through() -> None:
    guard = Guard(TrainConfig())
    assert not any(guard.judge(sums(1 / (1 + step))) for step in range(200))
    assert guard.spikes == guard.bad_steps == 0


def test_steps_without_a_loss_are_counted_in_a_row() -> None:
    guard = Guard(TrainConfig(max_bad_steps=3))
    assert [bool(guard.judge(sums(1.0, skipped))) for skipped in (2, 2, 1, 2, 2, 2)] == [False] * 5 + [True]
    assert guard.bad_steps == 0
    assert "in 3 steps in a row" in [guard.judge(sums(1.0, 2)) for _ in range(3)][-1]


def test_a_sudden_high_loss_is_a_bad_step_once_there_is_something_to_compare() -> None:
    guard = Guard(TrainConfig(spike_factor=5, max_bad_steps=2))
    assert not any(guard.judge(sums(loss)) for loss in (9.0, 50.0, *[1.0] * 30, 4.9, 5.1, 1.0, 7.0))
    assert guard.spikes == 2
    assert guard.judge(sums(8.0)) == "the loss was more than 5 times as high as before in 2 steps in a row"
    assert not guard.judge(sums(8.0))  # nothing to compare with after a return to a checkpoint
    assert Guard(TrainConfig(spike_factor=0)).judge(sums(1e9)) == ""


def test_a_forgotten_loss_is_compared_with_nothing() -> None:
    guard = Guard(TrainConfig(spike_factor=5))
    assert not any(guard.judge(sums(1.0)) for _ in range(30))
    guard.forget()
    guard.judge(sums(8.0))
    assert guard.spikes == 0


def test_a_tiny_loss_may_become_many_times_as_high() -> None:
    guard = Guard(TrainConfig(spike_factor=10, max_bad_steps=2))
    assert not any(guard.judge(sums(loss)) for loss in (*[1e-4] * 30, *[0.01] * 5, *[0.4] * 5))
    assert guard.spikes == 0
    assert [bool(guard.judge(sums(0.6))) for _ in range(2)] == [False, True]


def test_a_lost_gradient_is_a_reason_at_once() -> None:
    assert Guard(TrainConfig()).judge(sums(1.0, lost=True)) == "the gradient is not finite"


def test_a_step_without_targets_is_bad_and_leaves_no_trace_in_the_history() -> None:
    guard = Guard(TrainConfig(spike_factor=5, max_bad_steps=3))
    assert not any(guard.judge(sums(1.0)) for _ in range(30))
    assert not any(guard.judge(sums(1.0, weight=0.0)) for _ in range(2))
    assert guard.bad_steps == 2
    assert guard.judge(sums(1.0, weight=0.0)) == "there was no target to learn from in 3 steps in a row"
    assert not any(guard.judge(sums(1.0)) for _ in range(30))
    guard.judge(sums(1e6))
    assert guard.spikes == 1


def test_a_restart_changes_no_verdict() -> None:
    config = TrainConfig(spike_factor=5, max_bad_steps=3)
    steps = [sums(1.0)] * 25 + [sums(9.0)] * 2 + [sums(1.0, 2)] + [sums(1.0)] * 22 + [sums(8.0)] * 4
    whole = Guard(config)
    expected = [whole.judge(one) for one in steps]
    assert sum(map(bool, expected)) == 2
    for restart in (10, 26, 27, 28, 52):
        first = Guard(config)
        found = [first.judge(one) for one in steps[:restart]]
        second = Guard(config, json.loads(json.dumps(first.to_state())))
        assert found + [second.judge(one) for one in steps[restart:]] == expected
        assert second.to_state() == whole.to_state()
