from __future__ import annotations

import os
import signal

import pytest

from launcher.ranks import Ranks, StopFlag, find_ranks, first_host


def test_a_single_process_by_default() -> None:
    environment: dict[str, str] = {}
    assert find_ranks(environment) == Ranks(0, 1, 0, 1)
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert 1024 < int(environment["MASTER_PORT"]) < 65536


def test_deepspeed_and_torchrun_are_believed() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "SLURM_STEP_ID": "0"}
    before = dict(environment)
    assert find_ranks(environment) == Ranks(5, 8, 1, 4)
    assert environment == before


def test_srun_gives_ranks_and_a_meeting_point() -> None:
    environment = {
        "SLURM_STEP_ID": "0", "SLURM_PROCID": "6", "SLURM_NTASKS": "7", "SLURM_LOCALID": "2", "SLURM_NODEID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_JOB_ID": "4242",
    }  # fmt: skip
    assert find_ranks(environment) == Ranks(6, 7, 2, 3)
    assert environment["MASTER_ADDR"] == "gpu03"
    assert environment["MASTER_PORT"] == "24242"
    again = {name: value for name, value in environment.items() if name.startswith("SLURM")} | {"SLURM_RESTART_COUNT": "1"}
    find_ranks(again)
    assert again["MASTER_PORT"] != environment["MASTER_PORT"]  # a process of the first start may still be there


def test_a_shell_inside_an_allocation_is_one_process() -> None:
    assert find_ranks({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}).world == 1


@pytest.mark.parametrize(
    ("nodes", "first"), [("node1", "node1"), ("a[7-9,12]", "a7"), ("gpu01,gpu02", "gpu01"), ("x-y[003,005]", "x-y003")]
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signals_set_the_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    try:
        flag = StopFlag()
        assert not flag.set
        os.kill(os.getpid(), number)
        assert flag.set
    finally:
        signal.signal(number, before)
