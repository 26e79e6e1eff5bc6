"""Each rule against values worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("lesion", "lower", "upper", "mean", "std"),
    [
        # mixture of halves: mean variance plus the square of half the distance of the means
        (Spread(0, 100, -200, 250), -930, 700, -200, np.sqrt((300**2 + 100**2) / 2 + 200**2)),
        (Spread(900, 100, 500, 1400), -930, 1400, 250, np.sqrt((300**2 + 100**2) / 2 + 650**2)),
        (None, -930, 700, -400, 300),
    ],
)
@pytest.mark.parametrize("dims", [2, 3])
def test_ct_keeps_the_range_of_body_and_lesions_and_balances_them(
    dims, lesion, lower, upper, mean, std
):
    found = rules.normalisation(channel(True, lesion), dims).value
    assert (found.scheme, found.lower, found.upper, found.mean) == ("dataset", lower, upper, mean)
    assert found.std == pytest.approx(std, abs=1e-3)


def test_mri_is_scaled_by_case_and_radiographs_by_range():
    lesion = Spread(0, 1, 0, 1)
    assert rules.normalisation(channel(False, lesion), 3).value.scheme == "zscore"
    assert rules.normalisation(channel(False, lesion), 2).value.scheme == "range"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("noNorm", Normalisation("dataset")),
        ("zscore", Normalisation("zscore")),
        ("rescale_to_0_1", Normalisation("range")),
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


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1e-6), (1e-9, 1e-6), (3e-4, 3e-4), (0.5, 0.2)]
)
def test_the_prior_is_the_lesion_fraction_within_bounds(fraction: float, expected: float):
    found = rules.prior(fraction)
    assert found.value == expected
    assert ("kept within" in found.reason) == (fraction != expected)


@pytest.mark.parametrize(
    ("voxels", "least"),
    [
        ([], 1),
        ([1, 2, 900], 1),
        ([10] * 9, 1),
        ([11] * 9, 2),
        ([16] * 9, 2),
        ([45] * 9, 4),
        ([999], 10),
    ],
)
def test_the_smallest_candidate_is_a_tenth_of_the_smallest_lesion(voxels: list[int], least: int):
    assert rules.candidate_rule(voxels, [len(voxels)], 1e-3).value.min_voxels == least


def test_floor_and_number_of_candidates():
    usual = rules.candidate_rule([50], [3], 1e-4).value
    assert (usual.floor, usual.max_candidates) == (0.05, 300)
    crowded = rules.candidate_rule([50], [0, 110], 0.15).value
    assert (crowded.floor, crowded.max_candidates) == (0.15, 440)
