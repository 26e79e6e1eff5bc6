"""The pure parts of the training benchmark, and that its own worker runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_training as bench
from benchmarks.peers import peer_training as peer
from benchmarks.peers import training_work as work
from lesionseg.models.unet import UNet

PEERS = Path(".peers") / "bin" / "python"


def found(step_ms: float, **more: float) -> dict[str, float]:
    return {"step_ms": step_ms, "peak_mb": 100.0, **more}


def test_a_cpu_row_is_ours_against_each_peer() -> None:
    rows = bench.step_rows({"train_step": found(500)}, {"nnunet": found(1500)}, gpu=False)
    assert [(row.what, row.peer, row.ratio) for row in rows] == [
        ("train_step", "nnunet", 3.0),
        ("train_memory", "nnunet", 1.0),
    ]


def test_a_gpu_without_peers_is_held_against_the_goals() -> None:
    ours = {"train_step": found(20), "train_step_fast": found(10), "train_step_eager": found(30)}
    rows = bench.step_rows(ours, {}, gpu=True)
    assert [(row.what, row.peer, row.peer_value) for row in rows] == [
        ("train_step", "goal", 25.0),
        ("train_step_fast", "goal", 12.0),
    ]


def test_idle_time_is_told_where_a_device_was_watched() -> None:
    skipped: dict[str, str] = {}
    rows = bench.busy_rows(found(1, busy=0.98), found(1, busy=0.5), skipped)
    assert [round(row.ratio, 3) for row in rows] == [2.5, 25.0]
    assert not skipped
    assert bench.busy_rows(found(1), None, skipped) == []
    assert "train_idle" in skipped


def test_curves_are_compared_by_the_means_of_their_stretches() -> None:
    assert bench.thinned([4.0, 2.0, 3.0, 1.0], n=2) == [3.0, 2.0]
    assert bench.difference([1.0, 2.0], [1.0, 2.5]) == pytest.approx(0.2)


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


def test_overlapping_work_of_a_device_counts_once() -> None:
    assert work.covered([(5, 6), (0, 2), (1, 3)]) == 4
    assert work.covered([]) == 0


def test_a_job_travels_as_json() -> None:
    job = work.Job("tiles", "somewhere", space_to_depth=True)
    assert work.Job.from_json(json.loads(json.dumps(job.to_json())) | {"later": 1}) == job


def test_what_cannot_run_is_skipped_with_its_reason(tmp_path: Path) -> None:
    skipped: dict[str, str] = {}
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    job = work.Job("step", str(tmp_path))
    assert bench.run(command, job, skipped, "train_step") is None
    assert skipped == {"train_step": "no such thing"}


def test_every_weight_of_ours_has_one_of_theirs(repository: Path) -> None:
    network = UNet(3, 1, work.SIZES["cpu"].architecture(), (0.0, 0.0))
    names = [peer.their_name(name, 5) for name, _ in network.named_parameters()]
    assert len(set(names)) == len(names)
    assert "decoder.seg_layers.3.weight" in names  # the finest


@pytest.mark.slow
def test_the_networks_are_equal(repository: Path) -> None:
    if not (repository / PEERS).exists():
        pytest.skip("there is no .peers; make peers")
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_training.py", "--curve", "4", "--size", "tiny"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    worst = {row["what"]: row["ours"] for row in rows}
    assert worst["curve_ours"] < 1e-4, done.stdout
    assert float(done.stdout.splitlines()[0].split()[-1]) < 1e-6  # gradients in fp64
