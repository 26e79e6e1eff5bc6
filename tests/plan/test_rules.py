"""Each rule against values worked out by hand."""

import numpy as np
import pytest

from lesionseg.plan import rules
from lesionseg.plan.fingerprint import ChannelStatistics, Spread
from lesionseg.plan.plan import Normalisation

BOTH = ("cpu", "cuda")


@pytest.mark.parametrize(
    ("spacings", "smallest", "devices", "expected"),
    [
        # the median of each axis, of an anisotropic coarse axis the tenth percentile
        ([(2, 1, 1), (2, 1, 1), (3, 0.5, 2)], 20.0, ("cuda",), (2, 1, 1)),
        ([(z, 1, 1) for z in (2, 4, 5, 5, 6)], 100.0, ("cuda",), (2.8, 1, 1)),
        ([(1, 2)], None, BOTH, (1, 2)),  # no lesion
        # small lesions ask for the finer spacing that some cases have
        ([(1, 1, 1)] * 3 + [(2, 2, 2)] * 5, 4.0, ("cuda",), (1, 1, 1)),
        # half the resolution, only for large lesions and on a processor
        ([(0.5, 0.5)], 10.5, ("cpu",), (1, 1)),  # 21 pixels across
        ([(0.5, 0.5)], 10.0, ("cpu",), (0.5, 0.5)),  # 20 pixels
        ([(0.5, 0.5)], 90.0, ("cuda",), (0.5, 0.5)),
        ([(4, 1, 1)], 40.0, ("cpu",), (4, 2, 2)),  # the coarse axis stays
        ([(1, 1, 1)], 5.0, BOTH, (1, 1, 1)),
    ],
)
def test_spacing(spacings, smallest, devices, expected):
    diameters = [] if smallest is None else [smallest] * 50 + [200.0]
    for device in devices:
        assert rules.spacing(spacings, diameters, device).value == pytest.approx(expected)


def channel(is_ct: bool, lesion: Spread | None, name: str = "c") -> ChannelStatistics:
    return ChannelStatistics(name, is_ct, Spread(-400, 300, -930, 700), lesion, 1.0)


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


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("c", None),  # MRI is scaled by case, radiographs by range
        ("noNorm", Normalisation("dataset")),
        ("zscore", Normalisation("zscore")),
        ("rescale_to_0_1", Normalisation("range")),
        (" rgb_to_0_1", Normalisation("dataset", std=255.0)),
    ],
)
def test_a_name_by_which_nnunet_chooses_goes_before_the_rules(name, scale, dims: int):
    lesion = Spread(0, 1, 0, 1)
    found = rules.normalisation(channel(False, lesion, name), dims).value
    assert found == (scale or Normalisation("range" if dims == 2 else "zscore"))
    if scale is not None:
        assert rules.normalisation(channel(True, lesion, name), dims).value == scale


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1e-6), (1e-9, 1e-6), (3e-4, 3e-4), (0.5, 0.2)]
)
def test_the_prior_is_the_lesion_fraction_within_bounds(fraction: float, expected: float):
    assert rules.prior(fraction).value == expected


@pytest.mark.parametrize(
    ("voxels", "least"),
    [
        *(([], 1), ([1, 2, 900], 1), ([10] * 9, 1), ([11] * 9, 2)),
        *(([16] * 9, 2), ([45] * 9, 4), ([999], 10)),
    ],
)
def test_the_smallest_candidate_is_a_tenth_of_the_smallest_lesion(voxels: list[int], least: int):
    assert rules.candidate_rule(voxels, [len(voxels)], 1e-3).value.min_voxels == least


def test_floor_and_number_of_candidates():
    usual = rules.candidate_rule([50], [3], 1e-4).value
    assert (usual.floor, usual.max_candidates) == (0.05, 300)
    crowded = rules.candidate_rule([50], [0, 110], 0.15).value
    assert (crowded.floor, crowded.max_candidates) == (0.15, 440)
