"""Whole runs with real processes: killed, resumed, on other numbers of processes, and asked for nonsense."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine.conftest import all_split, rank_environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher import watchdog
from launcher.ranks import free_port
from mtbi.engine import checkpoint
from mtbi.engine.log import layout

LAYERS = ["model.llm_trainable=last 2", "train.llm_learning_rate=1e-4"]
MASKED = ["augment.time_masks=2", "augment.channel_masks=2"]
ENOUGH = "train.steps=14"  # for a run to be still at work when it is killed after its fifth step, also on a slow machine

Launch = Callable[..., list[str]]
Run = Callable[..., str]


def losses(output: str) -> dict[int, tuple[str, str]]:
    """Loss and position in the data by step, as logged."""
    pattern = r"^step (\d+)/\d+ loss (\S+) .* (epoch \d+ data step \d+)$"
    return {int(step): (loss, position) for step, loss, position in re.findall(pattern, output, re.MULTILINE)}


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint.latest_valid(run_dir)
    assert folder
    return checkpoint.load_trainable(folder)


def kill_after(command: list[str], environment: dict[str, str], text: str, number: int) -> str:
    """Start a run in a session of its own and send all its processes a signal once it has printed `text`."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            os.killpg(process.pid, number)
            break
    seen += process.stdout.read()
    process.wait(timeout=120)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        (1, ["model.encoder.trainable=true", "train.encoder_learning_rate=1e-5"]),
        (3, ["train.alignment_steps=7", *MASKED]),
        (3, [*LAYERS, "train.alignment_steps=2", "model.activation_checkpointing=on"]),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    launch: Launch, run: Run, environment: dict[str, str], tmp_path: Path, stage: int, fields: list[str]
) -> None:
    fields = [*fields, ENOUGH]
    whole = losses(run(launch(tmp_path / "whole", *fields, stage=stage)))
    assert sorted(whole) == list(range(1, 15))
    killed = losses(kill_after(launch(tmp_path / "killed", *fields, stage=stage), environment, "step 5/", signal.SIGKILL))
    assert 14 not in killed
    resumed = losses(run(launch(tmp_path / "killed", *fields, stage=stage)))
    # After the checkpoint of step 4, or a later one where the machine was slow to kill.
    assert min(resumed) in (5, 7, 9, 11, 13)
    assert {**killed, **resumed} == whole
    torch.testing.assert_close(final_weights(tmp_path / "killed"), final_weights(tmp_path / "whole"), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        ["model.encoder.trainable=true", "loss.alignment=0.5"],
        ["model.llm_lora.rank=4", "model.activation_checkpointing=on", "train.alignment_steps=2"],
        [*LAYERS, "model.llm_lora.rank=4", "train.llm_lora_learning_rate=1e-3"],
    ],
)
def test_zero_3_trains_encoders_and_low_rank_updates_as_zero_1_does(
    launch: Launch, run: Run, tmp_path: Path, fields: list[str]
) -> None:
    logged = [
        losses(run(launch(tmp_path / f"{stage}", *fields, "train.steps=3", stage=stage, processes=1))) for stage in (1, 3)
    ]
    assert {step: float(loss) for step, (loss, _) in logged[0].items()} == pytest.approx(
        {step: float(loss) for step, (loss, _) in logged[1].items()}, rel=1e-3
    )


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over_and_fewer_processes_go_on(
    launch: Launch, run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    whole = losses(run(launch(tmp_path / "whole", ENOUGH, processes=1)))
    first = losses(kill_after(launch(tmp_path / "moved", ENOUGH, processes=4), environment, "step 5/", signal.SIGKILL))
    older, newest = checkpoint.all_of(tmp_path / "moved")
    moments = newest / checkpoint.OPTIMIZER
    moments.write_bytes(moments.read_bytes()[:-100])
    begun = int(older.name.removeprefix("step-"))
    command = launch(tmp_path / "moved", ENOUGH, processes=2)
    output = kill_after(command, environment, f"step {begun + 3}/", signal.SIGKILL)
    assert f"{newest.name}: not used, optimizer.safetensors is damaged" in output
    second, third = losses(output), losses(run(launch(tmp_path / "moved", ENOUGH, processes=1)))
    assert min(second) == begun + 1
    assert max(third) == 14
    for moved in (first, second, third):
        for step, (loss, position) in moved.items():
            assert position == whole[step][1]
            assert float(loss) == pytest.approx(float(whole[step][0]), rel=2e-3)


@pytest.mark.slow
def test_trained_layers_of_the_llm_go_on_with_any_number_of_processes_and_any_stage(
    launch: Launch, run: Run, tmp_path: Path
) -> None:
    fields = [*LAYERS, "train.min_learning_rate=1e-3", "train.learning_rate=1e-3"]  # the same rate in runs of any length
    whole = losses(run(launch(tmp_path / "whole", *fields, "train.steps=4", processes=0, stage=2)))
    moved = {}
    for processes, stage, steps in [(2, 3, 2), (3, 1, 4)]:
        command = launch(tmp_path / "moved", *fields, f"train.steps={steps}", processes=processes, stage=stage)
        output = run(all_split(command, tmp_path))
        moved |= losses(output)
    assert re.search(r"^checkpoints: .* MB each \(adapter 0\.2 M, LLM layers 0\.4 M; ", output, re.MULTILINE)
    assert {step: position for step, (_, position) in moved.items()} == {step: at for step, (_, at) in whole.items()}
    assert {step: float(loss) for step, (loss, _) in moved.items()} == pytest.approx(
        {step: float(loss) for step, (loss, _) in whole.items()}, rel=2e-3
    )
    one, other = final_weights(tmp_path / "whole"), final_weights(tmp_path / "moved")
    assert sum(name.startswith("llm.") for name in one) == 18
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=2e-4, msg=name)


@pytest.mark.slow
def test_being_asked_to_stop_ends_after_a_checkpoint(
    launch: Launch, run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    command = launch(tmp_path / "run", "train.checkpoint_every_steps=100", "train.steps=200", processes=0)
    variables = {**environment, **rank_environment(0, 1, free_port())}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGUSR2)
            break
    output = process.stdout.read()
    assert process.wait(timeout=60) == 75, output
    folder = checkpoint.latest_valid(tmp_path / "run")
    assert folder
    stopped_at = json.loads((folder / checkpoint.STATE).read_text())["step"]
    assert 3 <= stopped_at < 20
    assert f"stopped after step {stopped_at}, as asked" in output


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_a_message_and_keeps_its_checkpoints(launch: Launch, run: Run, tmp_path: Path) -> None:
    output = run(
        launch(tmp_path / "run", "train.learning_rate=1e30", "train.warmup_steps=6", "train.max_bad_steps=2"), status=2
    )
    assert re.search(r"mtbi: step \d+: (the loss was not finite in 2 steps|the gradient is not finite)", output)
    assert "Traceback" not in output
    for folder in checkpoint.all_of(tmp_path / "run"):
        assert all(value.isfinite().all() for value in checkpoint.load_trainable(folder).values())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_lost_gradient_puts_the_newest_checkpoint_back(launch: Launch, run: Run, tmp_path: Path, stage: int) -> None:
    output = run(launch(tmp_path / "run", stage=stage, script=str(Path(__file__).with_name("lost_gradient.py"))))
    assert "step 6: the gradient is not finite; weights restored from step-00000004, the data goes on" in output
    logged = losses(output)
    assert sorted(logged) == list(range(1, 9))
    undisturbed = losses(run(launch(tmp_path / "whole", stage=stage)))
    assert logged[6] == undisturbed[6]
    assert logged[7] != undisturbed[7]  # computed with the weights of step 4
    assert float(logged[7][0]) == pytest.approx(float(undisturbed[7][0]), rel=0.5)
    assert all(value.isfinite().all() for value in final_weights(tmp_path / "run").values())


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    launch: Launch, run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    # No file may grow beyond 1 MB: the adapter's weights fit, Adam's moments do not.
    command = ["bash", "-c", 'ulimit -f 1000; exec "$@"', "bash", *launch(tmp_path / "run")]
    output = run(command, status=2)
    assert "step 2: the checkpoint could not be written" in output
    assert sorted(losses(output)) == list(range(1, 9))
    assert "make room and start again" in output
    assert "Traceback" not in output
    assert checkpoint.latest_valid(tmp_path / "run") is None
    assert "done: 8 steps" in run(launch(tmp_path / "run"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trian.steps=3"], "train"),
        (["data.shards=[]"], "data.shards is empty"),
        (["data.shards=[/nowhere]"], "no shards there"),
        (["model.llm=/nowhere"], "no tokenizer can be read"),
    ],
)
def test_mistakes_are_one_message(
    launch: Launch, environment: dict[str, str], tmp_path: Path, overrides: list[str], message: str
) -> None:
    command = launch(tmp_path / "run", *overrides, processes=0)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mtbi: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_fellow_never_comes_ends(
    launch: Launch, environment: dict[str, str], tmp_path: Path, rank: int
) -> None:
    command = launch(tmp_path / "run", "train.hang_seconds=2", processes=0)
    variables = {**environment, **rank_environment(rank, 2, free_port())}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == watchdog.HUNG, done.stderr
    assert f"watchdog: process {rank} on " in done.stderr
    assert "watchdog: not all 2 processes have joined" in done.stderr


def test_one_process_without_a_launcher_trains(launch: Launch, run: Run, tmp_path: Path) -> None:
    command = launch(tmp_path / "run", "train.steps=4", "plan.rows_per_step=1", processes=0, stage=1)
    output = run(command)
    logged = losses(output)
    assert sorted(logged) == [1, 2, 3, 4]
    assert all(float(loss) > 0 for loss, _ in logged.values())
    assert (tmp_path / "run" / "recipe.yaml").is_file()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    written = events.Tags()["scalars"]
    shown = [tag for page in layout(["repeat"]).values() for _, tags in page.values() for tag in tags]
    not_here = {"eval/loss", "eval/agreement", "speed/mfu"}  # no evaluation, no GPU
    assert all(any(re.fullmatch(tag, name) for name in written) for tag in shown if tag not in not_here)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert "done: 4 steps" in run(command)  # nothing left to do
