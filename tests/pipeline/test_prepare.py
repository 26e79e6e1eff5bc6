"""How many cases `prepare` takes at a time."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.config import PrepareConfig
from lesionseg.core import Geometry, Volume
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline import prepare as module
from lesionseg.pipeline.prepare import prepare

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


def _run(raw: Path, folder: Path) -> None:
    cfg = {"data": {"root": str(raw)}, "trainer": {"accelerator": "cpu"}}
    prepare(PrepareConfig.of(**cfg, run_dir=folder / "run"))


def test_as_many_cases_are_prepared_at_a_time_as_memory_holds(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[int]()
    fill = module.fill_cache

    def spied(*args: Any, workers: int, **others: Any) -> Any:
        taken.append(workers)
        return fill(*args, workers=workers, **others)

    monkeypatch.setattr(module, "fill_cache", spied)
    monkeypatch.setattr(module, "cores", lambda: 64)
    one = 16 * 18 * 20 * 14  # `needed_bytes` of a case
    for n_bytes in (3 * one, one - 1):
        monkeypatch.setattr(module, "default_budget", lambda n=n_bytes: n)
        _run(raw, tmp_path / str(n_bytes))
    assert taken == [3, 1]
