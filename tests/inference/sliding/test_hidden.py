"""Where a radiograph shows nothing, nothing is found; tilted gantries are straightened if asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, Volume
from lesionseg.errors import GeometryError
from lesionseg.inference.bundles.bundle import Bundle
from lesionseg.inference.decision import _within
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.open_scan import case_files
from lesionseg.inference.predictor import Predictor
from lesionseg.plan.plan import Plan
from tests.inference.networks import Bright
from tests.io.dicom_files import lps, place, write_series

EXACT = InferenceSettings(precision="fp32")


def test_nothing_is_found_where_nothing_is_shown(plan: Plan) -> None:
    image = np.full((20, 24, 28), 100, np.float32)
    image += np.random.default_rng(0).normal(0, 1, image.shape).astype(np.float32)
    image[4:8, 4:8, 4:8] = image[12:16, 14:18, 14:18] = 300
    geometry = Geometry.from_spacing(image.shape, (1, 1, 1))
    predictor = Predictor.from_network(Bright(), plan, settings=EXACT)
    seen = predictor.predict_volume(Volume(image[None], geometry), "a")
    assert len(seen.candidates) == 2
    valid = np.ones(image.shape, dtype=bool)
    valid[:10] = False
    hidden = predictor.predict_volume(Volume(image[None], geometry, valid), "a")
    assert hidden.instances is not None
    assert not hidden.instances[:10].any()
    (left,) = hidden.candidates
    assert left.start_vox == (12, 14, 14)
    assert not predictor.probabilities(Volume(image[None], geometry, valid))[0, :10].any()


def test_a_box_in_the_padding_is_dropped() -> None:
    box = Candidate(1, 1, 0.9, (0.0, 0.0), (4.0, 4.0), (2.0, 2.0), 4.0, None, has_mask=False)
    valid = np.ones((8, 8), dtype=bool)
    valid[:, :3] = False
    aside = replace(box, start_vox=(2.0, 3.0), stop_vox=(6.0, 7.0))
    assert _within((box, aside), valid) == (aside,)


def test_a_tilted_gantry_is_refused_or_resampled(tmp_path: Path, plan: Plan) -> None:
    grid = Geometry.from_spacing((5, 4, 6), (3, 1, 1))
    affine = grid.affine.copy()
    affine[:3, 1:3] *= -1  # DICOM's slices run to the patient's left and back
    grid = Geometry((5, 4, 6), affine)
    moved = {
        z: {**place(grid, z), "ImagePositionPatient": lps(grid, (z, 0.5 * z, 0))} for z in range(5)
    }
    folder = write_series(tmp_path, grid, moved)
    plain = replace(plan, spacing_mm=(3.0, 1.0, 1.0))
    files = case_files(folder, plain)
    with pytest.raises(GeometryError, match=r"dicom\.tilt=resample"):
        Predictor.from_network(Bright(), plain).scans.open(files)
    predictor = Predictor(Bundle(Bright(), plain), tilt="resample")
    assert predictor(folder).geometry.shape == (5, 6, 6)
