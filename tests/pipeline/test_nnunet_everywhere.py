"""An nnU-Net model folder instead of a bundle: DICOM, serve, Ray and `init_from`."""

import warnings
from unittest.mock import Mock

import highdicom as hd
import numpy as np
import pytest

from lesionseg.config import ModelConfig, ServeConfig
from lesionseg.core import Geometry, Volume
from lesionseg.errors import ConfigError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.text import read_csv
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.pipeline import predict_ray
from lesionseg.pipeline.planning import checkpoint_architecture, plan_to_start_from
from tests.commands import predict
from tests.inference.nnunet.small_models import SmallModel
from tests.io.dicom_files import CT, grid_of, slice_elements, write_dicom_file

SHAPE = (12, 18, 20)
GRID = grid_of("SPL", spacing=(2.0, 1.0, 1.0), shape=SHAPE)
VOXELS = np.random.default_rng(0).normal(100, 30, SHAPE)


def test_a_dicom_series_gives_a_dicom_segmentation(tmp_path):
    model = SmallModel().write(tmp_path / "results")
    for z in range(SHAPE[0]):
        write_dicom_file(
            tmp_path / "archive" / "P1" / f"{z:03d}.dcm",
            VOXELS[z].astype(np.int16),
            CT,
            Modality="MR",
            SeriesInstanceUID="1.2",
            SeriesDescription="FLAIR",
            RescaleSlope=1,
            RescaleIntercept=0,
            **slice_elements(GRID, z),
        )
    predict(model, tmp_path / "archive", tmp_path / "found", device="cpu")
    (row,) = read_csv(tmp_path / "found" / "predictions.csv")
    assert row["status"] == "done", row
    (segmentation,) = (tmp_path / "found").rglob("*seg*.dcm")
    mask = read_volume(next((tmp_path / "found").glob("*_mask.nii.gz"))).array[0]
    assert mask.any()
    written = hd.seg.segread(segmentation).get_volume(combine_segments=True)
    assert (written.array > 0).sum() == (mask > 0).sum()


@pytest.mark.slow
def test_ray_writes_the_same_files_as_one_machine(cluster, tmp_path, monkeypatch):
    on_ray = Mock(wraps=predict_ray.predict_on_ray)
    monkeypatch.setattr(predict_ray, "predict_on_ray", on_ray)
    model = SmallModel(n_folds=2).write(tmp_path / "results")
    volume = Volume(VOXELS[None].astype(np.float32), Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0)))
    for name in ("one", "two"):
        write_volume(tmp_path / "scans" / f"{name}.nii.gz", volume)
    predict(model, tmp_path / "scans", tmp_path / "here", device="cpu")
    predict(model, tmp_path / "scans", tmp_path / "there", device="cpu", engine="ray")
    assert on_ray.call_count == 1
    masks = sorted(path.name for path in (tmp_path / "here").glob("*.nii.gz"))
    assert len(masks) == 4  # of two cases, masks and instances
    for name in masks:
        there = read_volume(tmp_path / "there" / name).array
        np.testing.assert_array_equal(there, read_volume(tmp_path / "here" / name).array)
    assert read_volume(tmp_path / "there" / "one_mask.nii.gz").array.any()


def test_serve_returns_the_mask_of_a_scan(tmp_path):
    pytest.importorskip("fastapi")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # starlette prefers httpx2
        from fastapi.testclient import TestClient

    from tests.pipeline.serve_app import app_of

    model = SmallModel().write(tmp_path / "results")
    predictor = Predictor(model, device="cpu")
    scan = tmp_path / "scan.nii.gz"
    volume = Volume(VOXELS[None].astype(np.float32), Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0)))
    write_volume(scan, volume)
    app = app_of(predictor, ServeConfig.of(bundle=model), tmp_path / "temporary")
    (tmp_path / "temporary").mkdir()
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/predict", files={"file": ("scan.nii.gz", scan.read_bytes())})
    assert answer.status_code == 200, answer.text
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    found = read_volume(tmp_path / "mask.nii.gz").array[0]
    np.testing.assert_array_equal(found, predictor(scan).mask())


def test_training_from_the_folder_is_refused_and_a_checkpoint_advised(tmp_path):
    model = SmallModel().write(tmp_path / "results")
    with pytest.raises(ConfigError, match=r"fold_0/checkpoint_final\.pth") as caught:
        plan_to_start_from(str(model))
    advised = str(caught.value).rpartition("such as ")[2].removesuffix(".")
    shape = checkpoint_architecture(ModelConfig.of(init_from=advised), dims=3)
    assert shape is not None
    assert len(shape.features) == 3
