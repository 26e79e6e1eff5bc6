"""Predicted labels get the numbers that the dataset of the references has for their names."""

import pytest

from lesionseg.core import Candidate, Labels, Prediction
from lesionseg.errors import DatasetError
from lesionseg.evaluation.label_names import LabelNumbers
from tests.grids import unit_grid

GEOMETRY = unit_grid(8, 8)


def predict(labels, names):
    """Return a prediction with one candidate of each given label value, and a removed one."""
    drawn = [
        Candidate.from_box(n, label, 0.5, (0, 0, 2, 2), GEOMETRY)
        for n, label in enumerate(labels, 1)
    ]
    return Prediction("a", GEOMETRY, tuple(drawn), None, removed=(drawn[0],), labels=names)


def renumber(labels, names, reference):
    """Return the new values of labels, and the new names of the prediction."""
    given = reference if isinstance(reference, Labels) else Labels.of(reference)
    found = LabelNumbers(given).apply(predict(labels, names))
    assert found.removed[0].label == found.candidates[0].label
    return [candidate.label for candidate in found.candidates], dict(found.labels)


MASS_AND_NODULE = {1: "mass", 2: "nodule"}


@pytest.mark.parametrize(
    ("labels", "names", "reference", "expected"),
    [
        ([2, 1], MASS_AND_NODULE, {1: "nodule", 2: "mass"}, [1, 2]),
        ([2, 1], MASS_AND_NODULE, {3: "Nodule", 7: "Mass"}, [3, 7]),
        ([1, 2], {1: "a", 2: "A"}, {1: "A", 2: "a"}, [2, 1]),  # an equal name has priority
        ([1, 1], {1: "nodule"}, MASS_AND_NODULE, [2, 2]),
        ([1], {1: "nodule"}, {1: "lesion"}, [1]),  # a single label may have another name
        ([1], {1: "nodule"}, {255: "lesion"}, [255]),
        ([2, 1], {}, {1: "nodule", 2: "mass"}, [2, 1]),  # a file of another program
        ([2, 1], {1: "x", 2: "x"}, {1: "x", 2: "y"}, [2, 1]),
    ],
)
def test_labels_get_the_numbers_of_their_names(labels, names, reference, expected, caplog):
    numbers, new_names = renumber(labels, names, reference)
    assert numbers == expected
    assert sorted(new_names.values()) == sorted(names.values())
    assert not caplog.text


def test_unknown_label_gets_a_free_number_and_is_named_once(caplog):
    numbers = LabelNumbers(Labels.of({1: "nodule"}))
    for _ in range(2):
        found = numbers.apply(predict([1, 2], MASS_AND_NODULE))
        assert [candidate.label for candidate in found.candidates] == [2, 1]
        assert found.labels == {2: "mass", 1: "nodule"}
    other = numbers.apply(predict([1], {1: "cyst"}))
    assert other.candidates[0].label == 1  # both sides have a single label
    assert caplog.text.count("match none of its labels (nodule): mass.") == 1
    # a single unknown label does not count as the first of several
    assert renumber([1], {1: "lesion"}, MASS_AND_NODULE) == ([3], {3: "lesion"})
    assert "match none of its labels (mass, nodule): lesion." in caplog.text


def test_several_labels_without_a_common_name_are_an_error():
    with pytest.raises(DatasetError, match=r"\(mass, nodule\) and .* \(cyst, scar\) have no name"):
        renumber([1], MASS_AND_NODULE, {1: "cyst", 2: "scar"})


def test_names_do_not_matter_if_all_candidates_become_one_label():
    merged = Labels.of({1: "cyst", 2: "scar"}).merge()
    regions = Labels((1, 2), ("whole", "core"), regions=((1, 2), (2,)))
    for labels, numbers in ((None, [2, 1]), (merged, [1, 1]), (regions, [2, 1])):
        found = LabelNumbers(labels).apply(predict([2, 1], MASS_AND_NODULE))
        assert [candidate.label for candidate in found.candidates] == numbers
