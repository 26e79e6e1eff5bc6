"""Simulated chest CT: exact references, reproducible, with what nodules are mistaken for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Case, Geometry, Volume
from lesionseg.errors import ConfigError
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.ops.components import label_components
from lesionseg.phantoms.chest_ct import CtSettings, simulate_ct_case, write_ct_phantoms
from lesionseg.phantoms.fields import Tube, tube_share
from lesionseg.phantoms.lesion_shapes import RecordedOutlines, lesion_share
from lesionseg.phantoms.lungs import AIR, LUNG, SOFT, simulate_chest

SMALL = CtSettings(
    shape=(58, 50, 74),
    spacing_mm=(4.0, 4.0, 4.0),
    n_nodules=(3, 3),
    diameter_mm=(12.0, 14.0, 20.0),
)


def simulate(seed: int = 0, settings: CtSettings = SMALL, **options: bool) -> Case:
    return simulate_ct_case("a", np.random.default_rng(seed), settings, **options)


def test_the_chest_has_lungs_among_soft_tissue():
    chest = simulate_chest(np.random.default_rng(0), SMALL.shape, SMALL.spacing_mm)
    deep = chest.lung_mm > 15
    litres = (chest.lung_mm > 0).sum() * 64 / 1e6
    assert 2 < litres < 7  # an adult's lungs hold 4 to 6
    assert np.median(chest.hounsfield[deep]) == pytest.approx(LUNG, abs=80)
    assert chest.hounsfield.max() > 200  # bone
    assert chest.hounsfield[0, 0, 0] == pytest.approx(AIR)  # outside the body
    assert not chest.vessel[chest.lung_mm < -4].any()
    assert 0.001 < (chest.vessel[deep] > 0.5).mean() < 0.3


def test_the_heart_lies_on_the_left():
    """x grows to the patient's right, so the left lung is the one of the small indices."""
    chest = simulate_chest(np.random.default_rng(0), SMALL.shape, SMALL.spacing_mm)
    low, half = slice(10, 26), SMALL.shape[2] // 2
    left, right = (chest.lung_mm[low][..., part] > 0 for part in (np.s_[:half], np.s_[half:]))
    assert left.sum() < right.sum()


def test_a_tube_fills_its_cross_section():
    points = np.stack([np.zeros(81), np.zeros(81), np.linspace(-20, 20, 81)], axis=1)
    for radius, tolerance in ((3.0, 0.06), (0.4, 0.3)):
        share = tube_share([Tube(points, radius)], (15, 15, 21), (1.0, 1.0, 1.0), (0, 0, 0))
        area = share[:, :, 10].sum()
        assert area == pytest.approx(np.pi * radius**2, rel=tolerance)


def test_a_tube_outside_the_volume_leaves_it_empty():
    tube = Tube(np.full((3, 3), 90.0), 2.0)
    assert not tube_share([tube], (5, 5, 5), (1.0, 1.0, 1.0), (0, 0, 0)).any()


def test_the_same_seed_gives_the_same_case():
    first, second = simulate(3), simulate(3)
    np.testing.assert_array_equal(first.image.array, second.image.array)
    np.testing.assert_array_equal(first.reference.labels, second.reference.labels)
    assert not np.array_equal(first.image.array, simulate(4).image.array)


def test_nodules_lie_in_the_lungs_and_stand_apart():
    chest = simulate_chest(np.random.default_rng(5), SMALL.shape, SMALL.spacing_mm)
    case = simulate(5)
    instances = label_components(case.reference.labels > 0)
    assert 1 <= instances.max() <= 3
    assert chest.lung_mm[instances > 0].min() > -4  # partial volume alone reaches out


def test_nodules_are_denser_than_lung():
    quiet = replace(SMALL, noise_hu=0.0)
    case, free = simulate(2, quiet), simulate(2, quiet, lesion_free=True)
    mask = case.reference.labels > 0
    gain = (case.image.array - free.image.array)[0]
    assert mask.any()
    assert gain[mask].min() > 50
    assert gain.min() > -1  # a nodule makes nothing darker
    assert case.image.array[0][mask].max() < SOFT + 350


def test_without_contrast_nodules_do_not_show():
    quiet = replace(SMALL, noise_hu=0.0, contrast=0.0)
    hidden, free = (simulate(6, quiet, lesion_free=f).image.array for f in (False, True))
    np.testing.assert_allclose(hidden, free, atol=1e-3)


def test_noise_has_the_deviation_asked_for():
    loud, quiet = (
        simulate(1, replace(SMALL, noise_hu=n), lesion_free=True).image.array for n in (30.0, 0.0)
    )
    assert (loud - quiet).std() == pytest.approx(30, rel=0.01)


def test_a_lesion_free_case_has_an_empty_reference():
    assert not simulate(2, lesion_free=True).reference.labels.any()


def write_mask(folder: Path, mask: "np.ndarray") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    geometry = Geometry.from_spacing(mask.shape, (1.0, 1.0, 1.0))
    write_volume(folder / "m.nii.gz", Volume(mask[None].astype(np.uint8), geometry))


def test_a_recorded_outline_keeps_volume_and_shape(tmp_path: Path):
    rod = np.zeros((30, 30, 30), bool)
    rod[5:25, 13:17, 13:17] = True  # five times as long as wide
    rod[2, 2, 2] = True  # a second lesion, too small to copy
    write_mask(tmp_path, rod)
    share = lesion_share(
        np.random.default_rng(0), 12.0, (1.0, 1.0, 1.0), np.zeros(3), RecordedOutlines(tmp_path)
    )
    assert share.sum() == pytest.approx(np.pi / 6 * 12**3, rel=0.02)
    points = np.argwhere(share >= 0.5)
    long, _, short = np.sort(np.linalg.svd(points - points.mean(0), compute_uv=False))[::-1]
    assert long / short > 3


def test_masks_without_an_outline_are_refused(tmp_path: Path):
    speck = np.zeros((8, 8, 8), bool)
    speck[4, 4, 4] = True
    write_mask(tmp_path, speck)
    with pytest.raises(ConfigError, match="outline"):
        RecordedOutlines(tmp_path)


def test_written_scans_are_an_nnunet_folder(tmp_path: Path):
    options = {"shape": SMALL.shape, "spacing_mm": SMALL.spacing_mm}
    write_ct_phantoms(tmp_path, 3, seed=0, n_test=1, lesion_free_share=1 / 3, **options)
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "CT"}
    assert (described["numTraining"], described["numTest"]) == (2, 1)
    assert "SIMULATED" in described["description"]
    image = read_volume(tmp_path / "imagesTs" / "SIMC_002_0000.nii.gz")
    assert image.array.min() < -900  # air is kept
    assert image.geometry.spacing_mm == pytest.approx(SMALL.spacing_mm)
    assert not read_volume(tmp_path / "labelsTs" / "SIMC_002.nii.gz").array.any()


@pytest.mark.parametrize("wrong", [{"n_nodules": (3, 1)}, {"shape": (8, 8)}])
def test_impossible_settings_are_refused(wrong: dict[str, tuple[int, ...]]):
    with pytest.raises(ConfigError):
        CtSettings(**wrong)
