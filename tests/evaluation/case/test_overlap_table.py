import numpy as np
import pytest

from lesionseg.core import Geometry, Reference
from lesionseg.errors import ContentError
from lesionseg.evaluation.case.overlap_table import overlap_table, voxel_counts
from lesionseg.ops.components import candidates_of, lesion_instances, lesions_of
from tests.evaluation.hand_cases import prediction_of


def instances_of(seed, shape=(9, 10, 11), n=4):
    rng = np.random.default_rng(seed)
    array = np.zeros(shape, dtype=np.int32)
    for i in range(1, n + 1):
        start = rng.integers(0, np.array(shape) - 4)
        array[tuple(slice(s, s + rng.integers(1, 5)) for s in start)] = i
    return array


def both(seed):
    a, b = instances_of(seed), instances_of(seed + 100)
    geometry = Geometry.from_spacing(a.shape, (2.0, 1.0, 1.0))
    lesions = lesions_of(Reference(geometry, instances=a, instance_labels=(1, 1, 2, 2)))
    prediction = prediction_of(b, (0.9, 0.8, 0.7, 0.6), geometry, labels=(1, 2, 1, 2))
    return a, b, lesions, candidates_of(prediction, None)


@pytest.mark.parametrize("seed", range(6))
def test_table_equals_counting_each_pair(seed):
    a, b, lesions, candidates = both(seed)
    table = overlap_table(candidates, lesions)
    found = {
        (int(candidates.ids[c]), int(lesions.ids[k])): (int(v), float(i))
        for c, k, v, i in zip(table.candidate, table.lesion, table.voxels, table.iou, strict=True)
    }
    expected = {}
    for candidate in candidates.ids:
        for lesion in lesions.ids:
            shared = int(((b == candidate) & (a == lesion)).sum())
            if shared:
                union = int(((b == candidate) | (a == lesion)).sum())
                expected[int(candidate), int(lesion)] = (shared, pytest.approx(shared / union))
    assert found == expected


@pytest.mark.parametrize("label", [None, 1, 2])
def test_dice_equals_counting_voxels(label):
    a, b, lesions, candidates = both(3)
    accepted = np.array([True, True, False, True])
    counts = voxel_counts(candidates, lesions, overlap_table(candidates, lesions), accepted, label)
    of_lesion, of_candidate = np.array([0, 1, 1, 2, 2]), np.array([0, 1, 2, 0, 2])
    x = of_lesion[a] > 0 if label is None else of_lesion[a] == label
    y = of_candidate[b] > 0 if label is None else of_candidate[b] == label
    assert (counts.reference, counts.predicted, counts.shared) == (x.sum(), y.sum(), (x & y).sum())
    assert counts.dice == pytest.approx(2 * (x & y).sum() / (x.sum() + y.sum()))


def test_lesions_of_a_label_map_are_its_components():
    labels = np.array([[1, 0, 2, 2], [0, 0, 0, 1]], dtype=np.uint8)
    geometry = Geometry.from_spacing(labels.shape, (0.5, 0.5))
    lesions = lesions_of(Reference(geometry, labels=labels))
    assert lesions.labels.tolist() == [1, 2, 1]
    assert lesions.n_voxels.tolist() == [1, 2, 1]
    assert lesions.boxes.tolist() == [[0, 0, 1, 1], [0, 2, 1, 4], [1, 3, 2, 4]]
    np.testing.assert_allclose(lesions.centres_mm[1], [1.25, 0.0])  # (x, y)
    np.testing.assert_allclose(lesions.diameters_mm[0], 2 * (0.25 / np.pi) ** 0.5)


def test_without_a_mask_boxes_are_compared():
    geometry = Geometry.from_spacing((20, 20), (1.0, 1.0))
    boxes = np.array([[0, 0, 10, 10], [12, 12, 14, 14]], dtype=np.float32)
    lesions = lesions_of(Reference(geometry, boxes=boxes, box_labels=(1, 1)))
    map_ = np.zeros((20, 20), dtype=np.int32)
    map_[0:10, 0:5] = 1
    candidates = candidates_of(prediction_of(map_, (0.9,), geometry), None)
    table = overlap_table(candidates, lesions)
    assert table.iou.tolist() == [0.5]
    assert table.voxels.tolist() == [0]
    assert lesions.diameters_mm.tolist() == [10.0, 2.0]
    np.testing.assert_allclose(lesions.centres_mm[0], [4.5, 4.5])


def test_an_instance_that_is_not_listed_is_refused():
    geometry = Geometry.from_spacing((4, 4), (1.0, 1.0))
    map_ = np.array([[1, 2, 0, 7]] + [[0] * 4] * 3, dtype=np.int32)
    with pytest.raises(ContentError, match="not listed"):
        candidates_of(prediction_of(map_, (0.9,), geometry), None)


def test_ignored_voxels_are_taken_out_of_lesions():
    labels = np.array([[1, 1, 1, 0, 1]], dtype=np.uint8)
    geometry = Geometry.from_spacing(labels.shape, (1.0, 1.0))
    ignore = np.array([[0, 0, 1, 0, 1]], dtype=bool)
    from_labels = lesions_of(Reference(geometry, labels=labels, ignore=ignore))
    instances = lesion_instances(labels).instances
    from_instances = lesions_of(
        Reference(geometry, instances=instances, instance_labels=(1, 1), ignore=ignore)
    )
    assert from_labels.n_voxels.tolist() == from_instances.n_voxels.tolist() == [2]
