from __future__ import annotations

import subprocess

import pytest

from launcher.submit import main


def test_the_script_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["train.steps=100", "data.shards=[s3://bucket/with space]"]
    size = ["--nodes", "8", "--time", "02:00:00", "--partition", "gpu", "--zero", "ds_configs/zero2.json"]
    assert main(["submit", "demo", *fields, *size, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in script.splitlines() if line.startswith("#SB")
    )
    assert options["nodes"] == "8"
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert (options["time"], options["partition"], options["signal"]) == ("02:00:00", "gpu", "USR2@180")
    assert script.count("#SBATCH --time") == 1
    assert "MTBI_ZERO=ds_configs/zero2.json" in script
    assert "set -- --recipe demo train.steps=100 'data.shards=[s3://bucket/with space]'" in script
    assert "requeue" in options


def test_mistakes_are_found_before_the_queue(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["submit", "demo", "--dry-run", "train.setps=3"]) == 2
    assert "train.steps" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", "demo"]) == 2
    assert "sbatch is not installed here" in capsys.readouterr().err
