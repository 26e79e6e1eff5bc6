"""Labels of datasets and networks."""

from lesionseg.core import Labels

PLAIN = Labels((2, 5), ("scar", "cyst"), ignore=9)
REGIONS = Labels((1, 3, 4), ("whole", "core", "active"), regions=((1, 3, 4), (3, 4), (4,)))


def test_labels_without_regions_are_their_own_mask_values():
    assert PLAIN.value_names == PLAIN.mask_names == PLAIN.lesion_names == {2: "scar", 5: "cyst"}
    assert PLAIN.mask_values == (2, 5)
    assert PLAIN.channel_values == ((2,), (5,))
    assert PLAIN.channel_labels == ()
    assert len(PLAIN) == 2


def test_mask_value_has_the_name_of_the_smallest_region_that_contains_it():
    assert REGIONS.mask_names == {1: "whole", 3: "core", 4: "active"}
    equal = Labels((1, 2), ("first", "second"), regions=((1, 2), (1, 2)))
    assert equal.mask_names == {1: "second", 2: "second"}


def test_regions_have_one_label_for_all_lesions():
    assert REGIONS.lesion_names == {1: "lesion"}
    assert REGIONS.channel_values == REGIONS.regions
    assert REGIONS.channel_labels == ((1, 2, 3), (2, 3), (3,))


def test_labels_by_value_are_put_in_ascending_order():
    assert Labels.of({5: "cyst", 2: "scar"}, ignore=9) == PLAIN


def test_merged_labels_keep_the_names_of_their_values():
    merged = Labels((1,), ("lesion",), merged=REGIONS.mask_names)
    assert REGIONS.merge() == merged
    assert merged.predicted() == Labels((1,), ("lesion",))
    assert PLAIN.merge().ignore == 9
