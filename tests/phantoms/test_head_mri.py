"""Simulated heads: exact references, reproducible, neither trivial nor hopeless."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Case
from lesionseg.errors import ConfigError
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import label_components
from lesionseg.phantoms.fields import ellipsoid_depth, inside, millimetre_axes, smooth_field
from lesionseg.phantoms.head import TISSUES, Tissue, flair_signal, inversion_time_ms
from lesionseg.phantoms.head_mri import MriSettings, simulate_mri_case, write_mri_phantoms
from lesionseg.phantoms.lesion_shapes import lesion_share

SMALL = MriSettings(shape=(40, 44, 40), spacing_mm=(3.0, 3.0, 3.0), n_lesions=(6, 8))


def simulate(seed: int = 0, settings: MriSettings = SMALL, **options: bool) -> Case:
    return simulate_mri_case("a", np.random.default_rng(seed), settings, **options)


def test_fluid_is_dark_and_a_plaque_brighter_than_grey_and_white_matter():
    signal = {name: flair_signal(tissue) for name, tissue in TISSUES.items()}
    assert signal["csf"] < 1e-6
    assert signal["lesion"] > signal["grey"] > signal["white"] > signal["muscle"]


def test_flair_signal_by_hand():
    # T1 = 500 ms, TI = 1705 ms: 1 - 2 exp(-3.41) = 0.9339; exp(-100/70) = 0.2397
    assert flair_signal(Tissue(500, 70, 1.0)) == pytest.approx(0.9338 * 0.2397, rel=1e-3)


def test_the_inversion_time_nulls_its_tissue():
    ti, t1 = inversion_time_ms(2569.0, 9000.0), 2569.0
    assert 1 - 2 * np.exp(-ti / t1) + np.exp(-9000 / t1) == pytest.approx(0, abs=1e-12)


def test_a_sphere_s_depth_is_its_distance():
    axes = millimetre_axes((21, 21, 21), (1.0, 1.0, 1.0))
    distance = np.sqrt(sum(a**2 for a in axes))
    depth = ellipsoid_depth(axes, (0, 0, 0), (8, 8, 8))
    np.testing.assert_allclose(depth, 8 - distance, atol=0.02)


def test_partial_volume_of_a_sphere_adds_up_to_its_volume():
    axes = millimetre_axes((24, 24, 24), (1.0, 1.0, 1.0))
    share = inside(ellipsoid_depth(axes, (0.2, 0.1, 0), (9, 9, 9)), 1.0)
    assert share.sum() == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.01)


def test_a_smooth_field_is_standardised_and_smooth():
    field = smooth_field(np.random.default_rng(0), (40, 40, 40), (1.0, 1.0, 1.0), 20.0)
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-3)
    steps = np.abs(np.diff(field, axis=0))
    assert 0.1 < steps.mean() < 0.5  # a wave of 20 mm has a mean step of about 0.2


@pytest.mark.parametrize("diameter", [3.0, 6.0, 12.0])
def test_a_lesion_has_the_volume_of_its_sphere(diameter: float):
    share = lesion_share(np.random.default_rng(1), diameter, (1.5, 1.0, 2.0), np.zeros(3))
    assert share.sum() * 3.0 == pytest.approx(np.pi / 6 * diameter**3, rel=0.05)
    assert not any(share.take(i, axis).any() for axis in range(3) for i in (0, -1))


def test_the_same_seed_gives_the_same_case():
    first, second = simulate(3), simulate(3)
    np.testing.assert_array_equal(first.image.array, second.image.array)
    np.testing.assert_array_equal(first.reference.labels, second.reference.labels)
    assert not np.array_equal(first.image.array, simulate(4).image.array)


def test_lesions_are_separate_and_of_plausible_size():
    case = simulate_mri_case("a", np.random.default_rng(5), replace(SMALL, n_lesions=(7, 7)))
    instances = label_components(case.reference.labels > 0)
    assert 5 <= instances.max() <= 7  # a lesion that finds no free place is left out
    volumes = np.bincount(instances.ravel())[1:] * 27.0
    assert ((6 * volumes / np.pi) ** (1 / 3) < 16).all()


def test_lesions_are_brighter_than_the_white_matter_around_them():
    quiet = replace(SMALL, noise=0.0, bias=0.0)
    case, free = simulate(2, quiet), simulate(2, quiet, lesion_free=True)
    mask = case.reference.labels > 0
    inner = np.median(case.image.array[0][mask])
    white = np.median(free.image.array[0][14:26, 14:30, 12:28])
    assert inner > 1.2 * white


def test_lesion_free_case_has_an_empty_reference():
    case = simulate(2, lesion_free=True)
    assert case.reference.labels.shape == SMALL.shape
    assert not case.reference.labels.any()


def test_the_lesion_fraction_is_a_cap():
    scarce = replace(SMALL, shape=(64, 72, 64), spacing_mm=(2.0,) * 3, lesion_fraction=1e-4)
    mask = simulate(1, scarce).reference.labels > 0
    assert 0 < mask.mean() <= 1e-4


def test_lesions_without_contrast_leave_the_head_as_it_was():
    quiet = replace(SMALL, noise=0.0, bias=0.0, contrast=0.0)
    hidden, free = (simulate(6, quiet, lesion_free=f).image.array for f in (False, True))
    seen = free > 1
    ratio = hidden[seen] / free[seen]  # each scan has its own scale
    assert ratio.std() / ratio.mean() < 1e-4


def test_noise_is_a_share_of_white_matter_s_signal():
    loud = simulate(6, replace(SMALL, noise=0.2, bias=0.0), lesion_free=True).image.array[0]
    quiet = simulate(6, replace(SMALL, noise=0.0, bias=0.0), lesion_free=True).image.array[0]
    white = np.median(quiet[14:26, 14:30, 12:28])
    # in air the noise is Rayleigh: std = sigma sqrt(2 - pi/2)
    assert loud[:2, :2].std() == pytest.approx(0.2 * white * np.sqrt(2 - np.pi / 2), rel=0.15)


def test_air_has_the_mean_of_rician_noise():
    air = simulate(7, replace(SMALL, bias=0.0)).image.array[0, :2, :2]
    # Rayleigh: mean = sigma sqrt(pi/2), std = sigma sqrt(2 - pi/2)
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / 2 / (2 - np.pi / 2)), rel=0.1)


def test_writes_a_folder_in_nnunet_s_form(tmp_path):
    write_mri_phantoms(
        tmp_path, 4, seed=1, n_test=1, lesion_free_share=0.5, shape=SMALL.shape,
        spacing_mm=SMALL.spacing_mm, n_lesions=(3, 5),
    )  # fmt: skip
    meta = json.loads((tmp_path / "dataset.json").read_text())
    assert "SIMULATED" in meta["description"]
    assert (meta["numTraining"], meta["numTest"]) == (3, 1)
    assert sorted(p.name for p in (tmp_path / "imagesTr").iterdir()) == [
        f"SIM_00{i}_0000.nii.gz" for i in range(3)
    ]
    assert [p.name for p in (tmp_path / "labelsTs").iterdir()] == ["SIM_003.nii.gz"]
    masks = [read_volume(p) for p in sorted((tmp_path / "labelsTr").iterdir())]
    assert [bool(m.array.any()) for m in masks] == [True, False, True]
    image = read_volume(tmp_path / "imagesTr" / "SIM_000_0000.nii.gz")
    assert image.geometry.matches(masks[0].geometry)
    assert image.geometry.spacing_mm == pytest.approx((3, 3, 3))
    assert image.array.dtype == np.int16


def test_a_longer_set_begins_with_the_shorter_one(tmp_path):
    options = {"seed": 2, "shape": (32, 32, 32), "spacing_mm": (4.0, 4.0, 4.0)}
    write_mri_phantoms(tmp_path / "one", 1, **options)
    told: list[tuple[str, int, int]] = []
    write_mri_phantoms(tmp_path / "two", 2, **options, progress=lambda *done: told.append(done))
    assert told == [("SIM_000", 1, 2), ("SIM_001", 2, 2)]
    one, two = (read_volume(tmp_path / n / "imagesTr/SIM_000_0000.nii.gz") for n in ("one", "two"))
    np.testing.assert_array_equal(one.array, two.array)


def test_refuses_impossible_numbers(tmp_path):
    with pytest.raises(ConfigError, match="n_test=3"):
        write_mri_phantoms(tmp_path, 2, seed=0, n_test=3)
    with pytest.raises(ConfigError, match="n_lesions"):
        MriSettings(n_lesions=(5, 2))
    with pytest.raises(ConfigError, match="three axes"):
        MriSettings(shape=(32, 32))
