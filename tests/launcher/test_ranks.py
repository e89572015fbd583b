from __future__ import annotations

import os
import signal

import pytest

from launcher.ranks import Ranks, StopFlag, find_ranks, first_host
from mtbi.errors import UserError

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}  # fmt: skip
FIFTH = Ranks(5, 16, 1, 4)


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
    "environment",
    [
        OPEN_MPI,
        {
            "JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_SIZE": "16", "JSM_NAMESPACE_LOCAL_RANK": "1",
            "JSM_NAMESPACE_LOCAL_SIZE": "4",
        },
        {"FLUX_TASK_RANK": "5", "FLUX_JOB_SIZE": "16", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_NNODES": "4"},
        {"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "4", "PMI_RANK": "5", "PMI_SIZE": "16"},
        {"PMI_RANK": "5", "PMI_SIZE": "16", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"},
        {"PMI_RANK": "5", "PMI_SIZE": "16", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "4"},
        {  # mpirun inside of a Slurm job starts its helpers by srun, one a node
            **OPEN_MPI, "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_NODEID": "1",
        },
    ],
)  # fmt: skip
def test_launchers_of_mpi_are_read(environment: dict[str, str]) -> None:
    environment = {**environment, "MASTER_ADDR": "node1"}
    assert find_ranks(environment) == FIFTH
    assert [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == ["5", "16", "1", "4"]


def test_processes_of_mpirun_on_one_node_meet_there() -> None:
    for rank in range(2):
        environment = {
            **OPEN_MPI,
            "OMPI_COMM_WORLD_LOCAL_SIZE": "16",
            "PMIX_NAMESPACE": "job7",
            "OMPI_COMM_WORLD_RANK": f"{rank}",
        }
        assert find_ranks(environment) == Ranks(rank, 16, 1, 16)
        assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("127.0.0.1", "27564")


def test_a_single_process_of_mpirun_is_one() -> None:
    assert find_ranks({"PMIX_RANK": "0", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}).world == 1


def test_srun_with_variables_of_mpi_is_srun() -> None:
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    environment = {
        **slurm, "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "a[1-2]", "PMI_RANK": "5", "PMI_SIZE": "8",
        "PMIX_RANK": "5",
    }  # fmt: skip
    assert find_ranks(environment) == Ranks(5, 8, 1, 4)
    assert environment["MASTER_ADDR"] == "a1"


def test_an_interactive_step_of_slurm_is_one_process() -> None:
    assert find_ranks({"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}).world == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (OPEN_MPI, r"process 5 of 16: MASTER_ADDR is not set.*mpirun -x MASTER_ADDR"),
        ({"PMI_RANK": "3", "PMI_SIZE": "16", "MASTER_ADDR": "a"}, "mpiexec started 16 processes .*Export LOCAL_RANK"),
        ({"PMIX_RANK": "0"}, r"PMIX_RANK is set, so a launcher .*`env -u PMIX_RANK python"),
        ({"ALPS_APP_PE": "7"}, "ALPS_APP_PE is set"),
        ({"RANK": "0"}, r"RANK=0, WORLD_SIZE=\(not set\)"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one'.*not a number"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "4", "SLURM_NTASKS": "16"},
            "RANK=0 and WORLD_SIZE=1 are set, but srun started 16 processes .*unset RANK WORLD_SIZE",
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", **OPEN_MPI}, "mpirun of Open MPI started 16 processes"),
    ],
)
def test_what_cannot_be_read_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_ranks(dict(environment))


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
