"""`prepare` on this machine and on a small Ray cluster: the same plan, facts and cache."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.data.transforms import PrepareSettings
from lesionseg.errors import ConfigError, LesionsegError
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.prepare.recipe import prepare
from lesionseg.pipeline.train import learning
from lesionseg.plan.make import PlanOverrides
from lesionseg.training.settings import TrainerSettings

HEAD = (
    '{"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1},'
    ' "numTraining": 5, "file_ending": ".nii.gz"}'
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An nnU-Net raw folder of five cases whose files are older than two seconds."""
    root, rng = tmp_path / "Dataset001_Toy", np.random.default_rng(0)
    geometry = Geometry.from_spacing((16, 18, 20), (1.0, 1.0, 1.0))
    for i in range(5):
        labels = np.zeros((1, 16, 18, 20), np.uint8)
        labels[0, 4:8, 5:9, 6 + i : 10 + i] = 1
        image = rng.normal(size=labels.shape).astype(np.float32) + 3 * labels
        write_volume(root / "imagesTr" / f"c{i}_0000.nii.gz", Volume(image, geometry))
        write_volume(root / "labelsTr" / f"c{i}.nii.gz", Volume(labels, geometry))
    for path in root.rglob("*.nii.gz"):
        os.utime(path, (10**9, 10**9))
    (root / "dataset.json").write_text(HEAD)
    return root


def _run(raw: Path, folder: Path, engine: Any) -> dict[str, bytes]:
    """What `prepare` leaves in the folder, its log and locks aside."""
    prepare(
        DataSettings(str(raw)),
        PlanOverrides(),
        TrainerSettings(max_steps=1, accelerator="cpu"),
        PrepareSettings(),
        run_dir=str(folder / "run"),
        check=False,
        identifiers=False,
        seed=0,
        config={},
        engine=engine,
    )
    files = [path for path in folder.rglob("*") if path.is_file() and "." in path.name.strip(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_an_engine_that_there_is_not_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local, ray"):
        _run(raw, tmp_path / "a", "spark")


def test_as_many_cases_are_prepared_at_a_time_as_memory_holds(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[int]()
    fill = learning.fill_cache

    def spied(*args: Any, workers: int, **others: Any) -> Any:
        taken.append(workers)
        return fill(*args, workers=workers, **others)

    monkeypatch.setattr(learning, "fill_cache", spied)
    monkeypatch.setattr(learning, "cores", lambda: 64)
    one = 16 * 18 * 20 * 14  # `needed_bytes` of a case
    for n_bytes in (3 * one, one - 1):
        monkeypatch.setattr(learning, "default_budget", lambda n=n_bytes: n)
        _run(raw, tmp_path / str(n_bytes), "local")
    assert taken == [3, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_prepares_what_one_machine_does(raw: Path, tmp_path: Path, cluster: None) -> None:
    alone, together = (_run(raw, tmp_path / engine, engine) for engine in ("local", "ray"))
    assert set(alone) == set(together)
    assert sum(name.startswith("cache/facts") for name in together) == 5
    assert {n for n in alone if alone[n] != together[n]} <= {"run/config.yaml"}
    (raw / "labelsTr" / "c1.nii.gz").write_bytes(b"no mask")
    with pytest.raises(LesionsegError, match="c1"):
        _run(raw, tmp_path / "broken", "ray")
