"""An nnU-Net model folder instead of a bundle: DICOM, serve, Ray and `init_from`."""

import highdicom as hd
import numpy as np
import pytest

from lesionseg.config import ModelConfig
from lesionseg.errors import ConfigError
from lesionseg.io.text import read_csv
from lesionseg.io.volumes import read_volume
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


def test_training_from_the_folder_is_refused_and_a_checkpoint_advised(tmp_path):
    model = SmallModel().write(tmp_path / "results")
    with pytest.raises(ConfigError, match=r"fold_0/checkpoint_final\.pth") as caught:
        plan_to_start_from(str(model))
    advised = str(caught.value).rpartition("such as ")[2].removesuffix(".")
    shape = checkpoint_architecture(ModelConfig.of(init_from=advised), dims=3)
    assert shape is not None
    assert len(shape.features) == 3
