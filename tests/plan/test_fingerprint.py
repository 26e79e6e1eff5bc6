"""Counts and sizes of the fingerprint, and its JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.errors import DatasetError
from lesionseg.plan.fingerprint import Fingerprint
from tests.plan.conftest import take_fingerprint


def test_counts_and_sizes_equal_those_by_hand(dataset, cases):
    found = take_fingerprint(dataset, cases)
    counts = json.loads(found.to_json())
    names = ("n_cases", "n_lesions", "n_lesion_free_cases")
    assert [counts[name] for name in names] == [3, 3, 2]
    assert found.lesions_per_case == (3, 0, 0)
    assert sorted(found.lesion_voxels) == [1, 8, 8]
    # a ball of 8 voxels of 2 mm³
    assert max(found.diameters_mm) == pytest.approx(3.1264, rel=1e-4)
    assert found.lesion_fraction == pytest.approx(17 / (3 * 10 * 12 * 14))
    assert found.shapes == ((10, 12, 14),) * 3
    assert found.spacings_mm == ((2.0, 1.0, 1.0),) * 3
    assert found.modality == "mri"
    (channel,) = found.channels
    assert (channel.lesion.mean, channel.lesion.std) == (300, 0)
    assert channel.body.mean == pytest.approx(150, abs=3)
    assert channel.body.lower == pytest.approx(100, abs=2)
    assert channel.nonzero_share == 1


def test_ignored_voxels_do_not_count(dataset, cases):
    ignore = np.zeros((10, 12, 14), bool)
    ignore[5:] = True  # covers the second lesion and the lesion of one voxel
    ignored = [replace(c, reference=replace(c.reference, ignore=ignore)) for c in cases]
    found = take_fingerprint(dataset, ignored)
    assert (found.lesions_per_case, found.lesion_voxels) == ((1, 0, 0), (8,))
    assert found.lesion_fraction == pytest.approx(8 / (3 * 5 * 12 * 14))


@pytest.mark.parametrize(
    ("name", "values", "modality"),
    [("CT", 0, "ct"), ("ct", 0, "ct"), ("image", -1000, "ct"), ("T1", 0, "mri")],
)
def test_ct_is_recognised_by_name_or_by_its_values(dataset, cases, name, values, modality):
    for case in cases:
        case.image.array[0, :3] = values
    found = take_fingerprint(replace(dataset, channel_names=(name,)), cases)
    assert found.modality == modality
    assert found.channels[0].is_ct == (modality == "ct")
    assert found.channels[0].body.lower > -950  # air is left out


def test_pictures_in_colour_are_no_radiographs(dataset, cases):
    grid = Geometry.from_spacing((12, 14), (1.0, 1.0))
    image = Volume(np.ones((3, 12, 14), np.float32), grid)
    flat = [Case(c.case, image, Reference(grid, c.reference.labels[0])) for c in cases]
    pictures = replace(dataset, dims=2, channel_names=("R", "G", "B"))
    assert take_fingerprint(pictures, flat).modality == "colour"
    # three grey files per case
    files = tuple(replace(case, images=case.images * 3) for case in dataset.cases)
    assert take_fingerprint(replace(pictures, cases=files), flat).modality == "xray"


def test_boxes_of_radiographs_are_measured_as_ellipses(dataset):
    geometry = Geometry.from_spacing((20, 30), (0.5, 0.5))
    boxes = np.array([[2, 3, 6, 8], [10, 10, 12, 12]], dtype=np.float32)
    image = Volume(np.ones((1, 20, 30), np.float32), geometry)
    case = Case("a", image, Reference(geometry, boxes=boxes, box_labels=(1, 1)))
    found = take_fingerprint(replace(dataset, dims=2), [case])
    assert found.modality == "xray"
    assert found.diameters_mm == pytest.approx((np.sqrt(20) / 2, 1), abs=1e-4)
    assert found.lesion_voxels == (16, 3)  # π/4 of 20 and of 4
    assert found.lesion_fraction == pytest.approx(24 / 600)


def test_unlabelled_cases_are_skipped(dataset, cases):
    unlabelled = replace(cases[1], reference=None)
    assert take_fingerprint(dataset, [cases[0], unlabelled]).lesions_per_case == (3,)


def test_json_round_trip_keeps_the_fingerprint_and_wrong_json_is_refused(dataset, cases):
    free = take_fingerprint(dataset, cases[1:])
    assert free.channels[0].lesion is None
    assert (free.lesions_per_case, free.lesion_fraction) == ((0, 0), 0)
    found = take_fingerprint(dataset, cases)
    for one in (found, free):
        assert Fingerprint.from_json(one.to_json()) == one
    for text in ("{}", "[]", "nonsense", found.to_json().replace('_version": 1', '_version": 9')):
        with pytest.raises(DatasetError, match=r"a\.json"):
            Fingerprint.from_json(text, where="a.json")
