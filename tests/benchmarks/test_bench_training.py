"""The pure parts of the training benchmark, and that its own worker runs."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench_training as bench
from benchmarks.peers import training_work as work


def test_laps_count_what_comes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 9.0, 10.0, 12.0, 13.0, 16.0])
    monkeypatch.setattr(work.time, "perf_counter", lambda: next(now))
    laps = work.Laps(work.Job("step", "", size="tiny", warm_up=1, steps=2))
    ends = []
    for _ in range(3):
        laps.begin()
        ends.append(laps.end())
    assert ends == [False, False, True]
    result = laps.result()
    assert result["step_ms"] == 2500  # 2 s and 3 s
    assert result["tile_s"] == 7 / 4  # from 9 s to 16 s, two tiles a step
    assert result["outside"] == pytest.approx(2 / 7)


def test_a_job_travels_as_json() -> None:
    job = work.Job("tiles", "somewhere", precision="32-true")
    assert work.Job(**json.loads(json.dumps(job.to_json()))) == job


def test_what_cannot_run_is_skipped_with_its_reason(tmp_path: Path) -> None:
    skipped: dict[str, str] = {}
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    job = work.Job("step", str(tmp_path))
    assert bench.run(command, job, skipped, "train_step") is None
    assert skipped == {"train_step": "no such thing"}
