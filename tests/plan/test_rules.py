"""Each rule against values worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.data.prepare import normalise
from lesionseg.plan import rules
from lesionseg.plan.fingerprint import ChannelStatistics, Spread
from lesionseg.plan.plan import Normalisation


def test_spacing_is_the_median_of_each_axis():
    spacings = [(2.0, 1.0, 1.0), (2.0, 1.0, 1.0), (3.0, 0.5, 2.0)]
    found = rules.spacing(spacings, [20.0], "cuda")
    assert found.value == (2.0, 1.0, 1.0)
    assert found.reason == "the median spacing"


def test_an_anisotropic_coarse_axis_takes_the_tenth_percentile():
    spacings = [(z, 1.0, 1.0) for z in (2.0, 4.0, 5.0, 5.0, 6.0)]
    found = rules.spacing(spacings, [100.0], "cuda")
    assert found.value == pytest.approx((np.percentile([2, 4, 5, 5, 6], 10), 1.0, 1.0))
    assert "10th percentile" in found.reason


def test_small_lesions_ask_for_the_finer_spacing_that_some_cases_have():
    spacings = [(1.0, 1.0, 1.0)] * 3 + [(2.0, 2.0, 2.0)] * 5
    found = rules.spacing(spacings, [4.0] * 50, "cuda")
    assert found.value == (1.0, 1.0, 1.0)
    assert "finer where small lesions need it" in found.reason
    assert "still less" not in found.reason


def test_what_stays_unresolved_is_said():
    found = rules.spacing([(1.0, 1.0, 1.0)], [2.0] * 10 + [9.0] * 10, "cuda")
    assert found.value == (1.0, 1.0, 1.0)
    assert "under 2.0 mm" in found.reason


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_no_lesion_leaves_the_median(device: str):
    assert rules.spacing([(1.0, 2.0)], [], device).value == (1.0, 2.0)


@pytest.mark.parametrize(
    ("spacing", "smallest", "device", "expected"),
    [
        ((0.5, 0.5), 10.5, "cpu", (1.0, 1.0)),  # 21 pixels across
        ((0.5, 0.5), 10.0, "cpu", (0.5, 0.5)),  # 20 pixels
        ((0.5, 0.5), 90.0, "cuda", (0.5, 0.5)),
        ((4.0, 1.0, 1.0), 40.0, "cpu", (4.0, 2.0, 2.0)),  # the coarse axis stays
        ((1.0, 1.0, 1.0), 5.0, "cpu", (1.0, 1.0, 1.0)),
    ],
)
def test_resolution_is_halved_only_for_large_lesions_on_a_processor(
    spacing: tuple[float, ...], smallest: float, device: str, expected: tuple[float, ...]
):
    found = rules.spacing([spacing], [smallest, 200.0], device)
    assert found.value == expected
    assert ("half the resolution" in found.reason) == (spacing != expected)


def channel(is_ct: bool, lesion: Spread | None) -> ChannelStatistics:
    return ChannelStatistics("c", is_ct, Spread(-400, 300, -930, 700), lesion, 1.0)


def test_ct_keeps_the_body_s_range_and_balances_lesion_and_body():
    found = rules.normalisation(channel(True, Spread(0, 100, -200, 250)), 3).value
    assert (found.scheme, found.lower, found.upper) == ("dataset", -930, 700)
    assert found.mean == -200
    # mixture of halves: mean variance plus the square of half the distance of the means
    assert found.std == pytest.approx(np.sqrt((300**2 + 100**2) / 2 + 200**2), abs=1e-3)


def test_ct_is_widened_for_lesions_brighter_than_the_body():
    found = rules.normalisation(channel(True, Spread(900, 100, 500, 1400)), 3).value
    assert (found.lower, found.upper) == (-930, 1400)


def test_ct_without_lesions_uses_the_body():
    found = rules.normalisation(channel(True, None), 3).value
    assert (found.mean, found.std) == (-400, 300)


def test_mri_is_scaled_by_case_and_radiographs_by_range():
    lesion = Spread(0, 1, 0, 1)
    assert rules.normalisation(channel(False, lesion), 3).value.scheme == "zscore"
    assert rules.normalisation(channel(False, lesion), 2).value.scheme == "range"


def test_slices_called_ct_share_one_scale():
    assert rules.normalisation(channel(True, None), 2).value.scheme == "dataset"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("noNorm", Normalisation("dataset")),
        ("zscore", Normalisation("zscore")),
        (" rgb_to_0_1", Normalisation("dataset", std=255.0)),
    ],
)
def test_a_name_by_which_nnunet_chooses_goes_before_the_rules(
    name: str, scale: Normalisation, dims: int
):
    named = replace(channel(dims == 3, Spread(0, 1, 0, 1)), name=name)
    found = rules.normalisation(named, dims)
    assert found.value == scale
    assert name in found.reason


def test_no_norm_leaves_values_and_rgb_divides_them(rng):
    values = rng.uniform(0, 255, size=(2, 4, 4)).astype(np.float32)
    array = values.copy()
    normalise(array, [rules.NAMED_SCALES["nonorm"], rules.NAMED_SCALES["rgb_to_0_1"]])
    np.testing.assert_array_equal(array[0], values[0])
    np.testing.assert_allclose(array[1], values[1] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1e-6), (1e-9, 1e-6), (3e-4, 3e-4), (0.5, 0.2)]
)
def test_the_prior_is_the_lesion_fraction_within_bounds(fraction: float, expected: float):
    found = rules.prior(fraction)
    assert found.value == expected
    assert ("kept within" in found.reason) == (fraction != expected)


@pytest.mark.parametrize(
    ("voxels", "least"),
    [([1, 2, 900], 1), ([10] * 9, 1), ([11] * 9, 2), ([16] * 9, 2), ([45] * 9, 4), ([999], 10)],
)
def test_the_smallest_candidate_is_a_tenth_of_the_smallest_lesion(voxels: list[int], least: int):
    assert rules.candidate_rule(voxels, [len(voxels)], 1e-3).value.min_voxels == least


def test_floor_and_number_of_candidates():
    usual = rules.candidate_rule([50], [3], 1e-4).value
    assert (usual.floor, usual.max_candidates) == (0.05, 300)
    crowded = rules.candidate_rule([50], [0, 110], 0.15).value
    assert (crowded.floor, crowded.max_candidates) == (0.15, 440)


def test_an_empty_dataset_has_a_candidate_rule():
    assert rules.candidate_rule([], [], 1e-6).value.min_voxels == 1
