"""One set of cases, many workers: shards of a job array, several devices, a cluster."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lesionseg.core import CaseFiles, Geometry, Volume
from lesionseg.errors import ConfigError
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import read_csv
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from lesionseg.pipeline.predict import ray_engine
from lesionseg.pipeline.predict.predict_job import PredictJob, predict_cases, readers_of
from lesionseg.pipeline.predict.predictions_table import PredictionRow, PredictOutcome
from lesionseg.pipeline.predict.ray_engine import ATTEMPTS, Worker, Workers, share_out
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.plan.plan import Plan
from tests.inference.networks import Bright

SHAPE = (12, 18, 20)
MINE = {"mine": lambda _: Bright()}
CASES = [f"c{i}" for i in range(7)]
CPU = torch.device("cpu")


@pytest.fixture
def scans(tmp_path: Path, rng: np.random.Generator) -> Path:
    for case in CASES:
        image = rng.normal(100, 3, SHAPE).astype(np.float32)
        image[3:6, 4:8, 5:9] += 60
        geometry = Geometry.from_spacing(SHAPE, (1, 1, 1))
        write_volume(tmp_path / "scans" / f"{case}.nii.gz", Volume(image[None], geometry))
    return tmp_path / "scans"


def _run(bundle: Path, scans: Path, output: Path, **options: object) -> PredictOutcome:
    return predict(bundle, scans, output, **{"architectures": MINE, "device": "cpu", **options})  # type: ignore[arg-type]


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".csv"}


def test_shards_do_everything_once(bundle: Path, scans: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    _run(bundle, scans, whole)
    output = tmp_path / "shards"
    done = [
        [row.case for row in _run(bundle, scans, output, num_shards=3, shard_index=i)]
        for i in range(3)
    ]
    assert sorted(case for shard in done for case in shard) == CASES
    assert max(map(len, done)) - min(map(len, done)) <= 1
    assert _files(output) == _files(whole)
    for i in range(3):
        table = read_csv(output / f"predictions_{i}_of_3.csv")
        assert [line["case"] for line in table] == done[i]
    assert not (output / "predictions.csv").exists()
    # the command without shards keeps what they did, and writes the one table of all
    rows = _run(bundle, scans, output)
    assert [row.status for row in rows] == ["kept"] * len(CASES)
    assert [line["case"] for line in read_csv(output / "predictions.csv")] == CASES
    assert [line["case"] for line in read_csv(output / "study.csv")] == CASES


def test_a_shard_goes_on_where_any_run_stopped(bundle: Path, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    _run(bundle, scans, output, num_shards=2, shard_index=0)
    again = _run(bundle, scans, output, num_shards=3, shard_index=0)
    assert [(row.case, row.status) for row in again] == [
        ("c0", "kept"), ("c3", "done"), ("c6", "kept"),
    ]  # fmt: skip


def test_more_shards_than_cases_leave_some_without(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    rows = _run(bundle, scans, tmp_path / "out", num_shards=9, shard_index=8)
    assert rows == ()
    assert rows.exit_status == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_shards": 2, "shard_index": 2}, "shard_index from 0"),
        ({"num_shards": 0}, "shard_index from 0"),
        ({"engine": "spark"}, "local, ray"),
    ],
)
def test_wrong_requests_are_refused(
    bundle: Path, scans: Path, tmp_path: Path, options: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        _run(bundle, scans, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_devices_share_the_cases(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(bundle, scans, tmp_path / "one")
    meeting, infer_all, seen = threading.Barrier(2), Predictor.infer_all, []

    def together(self: Predictor, scans: Iterator[object], **options: object) -> Iterator[object]:
        """Both devices have a case in hand at the same time."""
        for tag, outcome in infer_all(self, scans, **options):  # type: ignore[arg-type]
            if not seen.count(id(self)):
                meeting.wait(timeout=20)
            seen.append(id(self))
            yield tag, outcome

    monkeypatch.setattr(Predictor, "infer_all", together)
    rows = _run(bundle, scans, tmp_path / "two", device=["cpu", "cpu"])
    assert [(row.case, row.status) for row in rows] == [(case, "done") for case in CASES]
    assert len(set(seen)) == 2
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


def test_devices_share_a_small_memory_too(bundle: Path, scans: Path, tmp_path: Path) -> None:
    tight = InferenceSettings(max_memory_gb=1e-6)
    rows = _run(bundle, scans, tmp_path / "out", device=["cpu"] * 3, inference=tight)
    assert [row.status for row in rows] == ["done"] * len(CASES)


def test_several_readers_and_writers_of_a_device_do_everything_once(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    _run(bundle, scans, tmp_path / "one")
    several = InferenceSettings(readers=3)
    rows = _run(bundle, scans, tmp_path / "three", inference=several)
    assert [(row.case, row.status) for row in rows] == [(case, "done") for case in CASES]
    assert _files(tmp_path / "three") == _files(tmp_path / "one")
    tight = replace(several, max_memory_gb=1e-6)
    rows = _run(bundle, scans, tmp_path / "tight", inference=tight)
    assert [row.status for row in rows] == ["done"] * len(CASES)


def test_a_gpu_is_fed_by_up_to_four_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesionseg.pipeline.predict.predict_job.cores", lambda: 12)
    gpu, cpu = SimpleNamespace(device=torch.device("cuda")), SimpleNamespace(device=CPU)
    for given, n in (([gpu], 4), ([gpu] * 2, 3), ([gpu] * 8, 1), ([cpu], 1)):
        assert readers_of(InferenceSettings(), given) == n  # type: ignore[arg-type]
    assert readers_of(InferenceSettings(readers=7), [cpu]) == 7  # type: ignore[arg-type]


def test_every_gpu_is_used_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    job = PredictJob((Path("b"),), Path("o"))
    for n_gpus, devices in {0: ("auto",), 1: ("auto",), 3: ("cuda:0", "cuda:1", "cuda:2")}.items():
        monkeypatch.setattr("torch.cuda.device_count", lambda n=n_gpus: n)
        assert job.devices == devices
    assert replace(job, device="cuda:1").devices == ("cuda:1",)
    assert replace(job, device=("cpu", "cpu")).devices == ("cpu", "cpu")


def _node(cores: float, gpus: float = 0.0, alive: bool = True) -> dict[str, object]:
    return {"Alive": alive, "Resources": {"CPU": cores, "GPU": gpus}}


def test_a_cluster_is_shared_out_by_gpus_else_by_cores() -> None:
    assert share_out([_node(8, 4), _node(8, 2)]) == Workers(6, 0, 1, 4)
    assert share_out([_node(8, 4)], wants_gpu=False) == Workers(4, 2, 0, 4)
    assert share_out([_node(8), _node(1), _node(64, 8, alive=False)]) == Workers(9, 1, 0, 8)
    with pytest.raises(ConfigError, match="no core"):
        share_out([_node(0)])


@pytest.fixture
def on_a_worker(plan: Plan, scans: Path, tmp_path: Path) -> Callable[[], list[PredictionRow]]:
    """A worker that is new to the same batch of three cases each time."""
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "")
    job = PredictJob((tmp_path / "bundle",), tmp_path / "out", device="cpu")
    (tmp_path / "out" / ATTEMPTS).mkdir(parents=True)
    cases = [(CaseFiles(c, (scans / f"{c}.nii.gz",)), None) for c in CASES[:3]]

    def rows() -> list[PredictionRow]:
        return Worker(job, None, 2).predict(cases)

    return rows


def _begun(out: Path, case: str) -> Path:
    return out / ATTEMPTS / hashlib.sha256(case.encode()).hexdigest()


def test_a_batch_that_killed_its_worker_goes_on_with_the_cases_that_are_left(
    on_a_worker: Callable[[], list[PredictionRow]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, seen = tmp_path / "out", list[list[str]]()

    def deadly(job: PredictJob, cases: Sequence[CaseFiles], **others: Any) -> Iterator[Any]:
        seen.append([files.case for files in cases])
        for row in predict_cases(job, cases, **others):
            if row.case == "c1" and len(seen) == 1:
                raise SystemExit  # the worker dies
            yield row

    monkeypatch.setattr(ray_engine, "predict_cases", deadly)
    with pytest.raises(SystemExit):
        on_a_worker()
    assert [row.status for row in on_a_worker()] == ["done"] * 3
    assert seen == [["c0", "c1", "c2"], ["c1"], ["c2"]]
    assert _begun(out, "c1").stat().st_size == 1


def test_a_case_that_killed_three_workers_is_given_up(
    on_a_worker: Callable[[], list[PredictionRow]], tmp_path: Path
) -> None:
    assert [row.status for row in on_a_worker()] == ["done"] * 3
    _begun(tmp_path / "out", "c1").with_suffix(".json").unlink()
    _begun(tmp_path / "out", "c1").write_bytes(b"xxx")
    rows = on_a_worker()
    assert [row.status for row in rows] == ["done", "failed", "done"]
    assert "3 workers died" in rows[1].message


class _Died(Exception):
    """What Ray raises of a dead worker."""


class _Actor:
    """The second dies of its first batch; for the third the cluster has no room."""

    n_begun = 0

    def __init__(self) -> None:
        _Actor.n_begun += 1
        self.number = _Actor.n_begun
        self.__ray_ready__ = SimpleNamespace(remote=lambda: self._answer(None))
        self.predict = SimpleNamespace(remote=self._answer)

    def _answer(self, batch: Any) -> Callable[[], Any]:
        def answer() -> Any:
            if self.number == 2 and batch is not None:
                raise _Died
            return batch is None or [files.case for files, _ in batch]

        answer.has_room = self.number != 3  # type: ignore[attr-defined]
        return answer


class _Stillborn(_Actor):
    """Dies before it has loaded the networks."""

    def _answer(self, batch: Any) -> Callable[[], Any]:
        def answer() -> Any:
            raise _Died

        answer.has_room = True  # type: ignore[attr-defined]
        return answer


def _rows_of(actor: type[_Actor], cases: Sequence[CaseFiles]) -> list[Any]:
    ray = SimpleNamespace(
        wait=lambda calls: ([next(call for call in calls if call.has_room)], []),
        get=lambda call: call(),
        exceptions=SimpleNamespace(RayActorError=_Died, OutOfMemoryError=_Died),
    )
    return list(ray_engine._rows(ray, actor, 3, cases, {}))


def test_a_dead_workers_batch_goes_to_another_and_one_without_room_is_not_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Actor, "n_begun", 0)
    cases = [CaseFiles(f"{i:03}", (Path(f"{i}.nii"),)) for i in range(100)]
    assert sorted(_rows_of(_Actor, cases)) == [files.case for files in cases]
    assert _Actor.n_begun == 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_workers_that_all_die_at_their_start_end_the_command() -> None:
    with pytest.raises(ConfigError, match="10 in a row"):
        _rows_of(_Stillborn, [CaseFiles("a", (Path("a.nii"),))])


def test_a_missing_package_is_named_with_the_way_to_install_it(
    bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match='pip install "ray'):
        _run(bundle, scans, tmp_path / "out", engine="ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_does_all_cases_though_workers_are_killed(
    bundle: Path, scans: Path, tmp_path: Path, cluster: None
) -> None:
    _run(bundle, scans, tmp_path / "alone")
    struck = tmp_path / "struck"

    class Deadly(Bright):
        """Kills its process once."""

        def forward(self, image: Tensor) -> list[Tensor]:
            if not struck.exists():
                struck.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(image)

    (scans / "broken.nii.gz").write_bytes(b"no image")
    rows = _run(
        bundle,
        scans,
        tmp_path / "cluster",
        engine="ray",
        architectures={"mine": lambda _: Deadly()},
    )
    assert struck.exists()
    assert [(r.case, r.status) for r in rows] == [
        ("broken", "failed"), *((case, "done") for case in CASES),
    ]  # fmt: skip
    assert _files(tmp_path / "cluster") == _files(tmp_path / "alone")
    assert len(read_csv(tmp_path / "cluster" / "predictions.csv")) == len(CASES) + 1
