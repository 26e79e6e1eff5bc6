"""Jobs side by side: their environment, their logs, their failures and their end."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from lesionseg.errors import ConfigError, TrainingError
from lesionseg.pipeline.train.parallel import LOG, Job, places_of, run_together
from lesionseg.training.settings import TrainerSettings


def shell(command: str) -> partial[object]:
    """Builtin functions alone: a process of its own does not know this module."""
    return partial(subprocess.run, ["sh", "-c", command], check=True)


def job(folder: Path, name: str, command: str) -> Job:
    (folder / name).mkdir()
    return Job(name, folder / name, shell(f"cd '{folder / name}' && {command}"))


def log_of(folder: Path, name: str) -> str:
    return (folder / name / LOG).read_text()


def test_each_place_has_one_job_at_a_time_and_its_own_environment(tmp_path: Path) -> None:
    jobs = [job(tmp_path, n, "echo place $PLACE") for n in "abc"]
    run_together(jobs, [{"PLACE": "1"}, {"PLACE": "2"}])
    places = [log_of(tmp_path, n).split() for n in "abc"]
    assert places[:2] == [["place", "1"], ["place", "2"]]
    assert places[2][1] in "12"
    assert "PLACE" not in os.environ


def test_a_failing_job_lets_the_others_finish_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [job(tmp_path, "a", "echo no; exit 3"), job(tmp_path, "b", "sleep 0.5; touch done")]
    with pytest.raises(TrainingError, match=r"^a failed") as failure:
        run_together(jobs, [{}, {}])
    assert "exit status 3" in str(failure.value)
    assert (tmp_path / "b" / "done").exists()
    assert "no" in log_of(tmp_path, "a")


PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from functools import partial
from pathlib import Path
from lesionseg.pipeline.train.parallel import Job, run_together

if __name__ == "__main__":
    work = "import os, time; open('pid', 'a').write(f'{os.getpid()} '); time.sleep(600)"
    task = partial(exec, work)
    run_together([Job(n, Path("."), task) for n in "ab"], [{}, {}])
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_parent_ends_its_jobs(tmp_path: Path, end: signal.Signals) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    pids = wait_for(lambda: (tmp_path / "pid").read_text().split(), 2)
    parent.send_signal(end)
    parent.wait(60)
    wait_for(lambda: [pid for pid in pids if not Path("/proc", pid).exists()], 2)


def wait_for(look, n: int) -> list[str]:
    for _ in range(600):
        try:
            found = look()
        except FileNotFoundError:
            found = []
        if len(found) == n:
            return found
        time.sleep(0.1)
    raise AssertionError("waited 60 s")


def settings(**others: object) -> TrainerSettings:
    return TrainerSettings(max_steps=1, **others)  # type: ignore[arg-type]


def test_a_processors_cores_are_shared_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    cpu = settings(accelerator="cpu")
    assert places_of(cpu, "auto") == [{"OMP_NUM_THREADS": "8"}]
    assert places_of(cpu, 3) == [{"OMP_NUM_THREADS": "2"}] * 3


@pytest.mark.parametrize(
    ("devices", "asked", "expected"),
    [
        (1, "auto", ["4", "5", "6", "7"]),
        (2, "auto", ["4,5", "6,7"]),
        (3, "auto", ["4,5,6"]),
        ("auto", "auto", ["4,5,6,7"]),
        (1, 2, ["4", "5"]),
        (2, 3, ["4,5", "6,7", "4,5"]),
    ],
)
def test_visible_gpus_are_dealt_out(
    monkeypatch: pytest.MonkeyPatch, devices: int | str, asked: int | str, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    places = places_of(settings(devices=devices), asked)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if devices == 3:
        assert places_of(settings(devices=3), asked) == [{"CUDA_VISIBLE_DEVICES": "0,1,2"}]
        with pytest.raises(ConfigError, match="fewer GPUs"):
            places_of(settings(devices=5), asked)
