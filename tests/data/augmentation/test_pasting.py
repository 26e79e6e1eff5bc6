from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.data.augmentation.augment import AugmentationSettings
from lesionseg.data.augmentation.pasting import Donors, Pasting, TileArrays, paste
from lesionseg.data.cache.cached_case import read_cached_case, write_cached_case
from lesionseg.data.prepared_case import PreparedCase
from lesionseg.data.prepared_reference import PreparedReference
from lesionseg.data.sampling import SamplingSettings
from lesionseg.data.tile_dataset import TileDataset
from lesionseg.errors import ConfigError

SHAPE, TILE = (24, 26, 28), (16, 16, 16)
LESION = (slice(10, 12), slice(10, 13), slice(10, 14))


def write_case(folder, image, instances, labels=None, valid=None):
    """A cached case with one channel; every instance has label 1 unless `labels` are given."""
    kinds = (instances > 0).astype(np.uint8) if labels is None else labels
    of_lesions = tuple(int(kinds[instances == i].max()) for i in range(1, instances.max() + 1))
    reference = PreparedReference(kinds, instances, of_lesions, valid)
    volume = Volume(image[None].astype(np.float32), Geometry.from_spacing(image.shape, (1, 1, 1)))
    folder.mkdir()
    write_cached_case(
        folder, PreparedCase(folder.name, folder.name, volume, reference), reference, "hash"
    )
    return read_cached_case(folder)


@pytest.fixture
def donor(tmp_path):
    """Tissue of 1 with one lesion of 3, 24 voxels."""
    instances = np.zeros(SHAPE, np.int32)
    instances[LESION] = 1
    return write_case(tmp_path / "donor", np.where(instances, 3.0, 1.0), instances)


def tissue(level=1.0, *, lesion=False, dtype=np.float16):
    """A tile of even tissue, with a lesion of 5 in the middle if wanted."""
    instances = np.zeros(TILE, np.uint8)
    if lesion:
        instances[6:10, 6:10, 6:10] = 7
    image = np.where(instances, 5.0, level)[None].astype(dtype)
    return TileArrays(image, (instances > 0).astype(np.uint8), instances, np.ones(TILE, bool))


def order(n=1, contrast=(1.0, 1.0), flips=(), seed=0):
    return Pasting(n, contrast, flips, seed)


def test_a_copy_brings_the_lesions_voxels_their_contrast_and_both_masks(donor):
    tile = tissue(level=1.25)
    paste(tile, Donors([donor], TILE), order())
    copied = tile.instances == 1
    assert copied.sum() == 24
    assert np.array_equal(copied, tile.labels == 1)
    sides = [np.ptp(axis) + 1 for axis in np.nonzero(copied)]
    assert sides == [2, 3, 4]
    # 2 above the tissue where it was, 2 above the tissue where it is now
    np.testing.assert_allclose(tile.image[0][copied], 3.25, atol=2e-3)
    assert np.ptp(tile.image[0][~copied]) < 1e-3


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_the_contrast_is_made_weaker_or_stronger(donor, factor):
    tile = tissue()
    paste(tile, Donors([donor], TILE), order(contrast=(factor, factor)))
    np.testing.assert_allclose(tile.image[0][tile.instances == 1], 1 + 2 * factor, atol=2e-3)


def test_what_was_there_stays_and_copies_have_numbers_of_their_own(donor):
    tile, before = tissue(lesion=True), tissue(lesion=True)
    paste(tile, Donors([donor], TILE), order(n=3))
    there = before.instances > 0
    assert np.array_equal(tile.image[:, there], before.image[:, there])
    assert np.array_equal(tile.instances[there], before.instances[there])
    numbers, voxels = np.unique(tile.instances[~there], return_counts=True)
    assert numbers.tolist()[:3] == [0, 8, 9]  # two at least find room
    assert set(voxels[1:].tolist()) == {24}


def test_no_copy_where_the_tissue_differs_where_there_is_no_room_or_no_lesson(donor):
    unlike, small, silent = tissue(level=0.0), tissue(), tissue()
    silent.valid[:] = False
    small = TileArrays(
        *(a[..., :3] for a in (small.image, small.labels, small.instances, small.valid))
    )
    for tile in (unlike, small, silent):
        before = tile.image.copy()
        paste(tile, Donors([donor], TILE), order(n=5))
        assert not tile.instances.any()
        assert np.array_equal(tile.image, before)


def test_no_copy_of_a_label_that_the_tile_does_not_annotate(donor):
    for unannotated, n_voxels in (((1,), 0), ((2,), 24)):
        tile = replace(tissue(), unannotated=unannotated)
        paste(tile, Donors([donor], TILE), order(n=3))
        assert (tile.instances == 1).sum() == n_voxels


def test_of_two_tissues_the_one_alike_is_chosen(donor):
    tile = tissue()
    tile.image[:, :8] = 1.4
    paste(tile, Donors([donor], TILE), order())
    assert (np.nonzero(tile.instances)[0] >= 6).all()


def test_a_full_table_of_numbers_takes_no_copy(donor):
    tile = tissue()
    tile.instances[0, 0, 0] = 255
    paste(tile, Donors([donor], TILE), order())
    assert np.unique(tile.instances).tolist() == [0, 255]


def test_lesions_too_large_for_half_a_tile_are_no_donors(donor):
    assert len(Donors([donor], TILE)) == 1
    assert len(Donors([donor], (16, 16, 7))) == 0
    tile = tissue()
    paste(tile, Donors([], TILE), order())
    assert not tile.instances.any()


def test_a_lesion_without_tissue_around_it_is_left(tmp_path):
    instances = np.ones((4, 4, 4), np.int32)
    filled = write_case(tmp_path / "filled", np.ones((4, 4, 4)), instances)
    tile = tissue()
    paste(tile, Donors([filled], TILE), order())
    assert not tile.instances.any()


def test_neighbours_of_a_lesion_are_not_copied_with_it(tmp_path):
    instances = np.zeros(SHAPE, np.int32)
    instances[10, 10, 10], instances[10, 10, 12] = 1, 2
    case = write_case(tmp_path / "two", np.where(instances, 3.0, 1.0), instances)
    tile = tissue()
    paste(tile, Donors([case], TILE), order())
    assert (tile.instances > 0).sum() == 1


def test_what_touches_a_lesion_is_not_copied_with_it(tmp_path):
    instances = np.zeros(SHAPE, np.int32)
    instances[10, 10, 10], instances[10, 10, 11] = 1, 2
    case = write_case(tmp_path / "touching", np.where(instances == 2, 99.0, 1.0), instances)
    for seed in range(8):  # either of the two
        tile = tissue()
        paste(tile, Donors([case], TILE), order(seed=seed))
        assert tile.instances.any()
        assert tile.image[0][tile.instances == 0].max() == 1


def test_regions_of_a_lesion_come_along(tmp_path):
    instances = np.zeros(SHAPE, np.int32)
    instances[LESION] = 1
    labels = instances.astype(np.uint8)
    labels[10] *= 2
    case = write_case(tmp_path / "regions", np.where(instances, 3.0, 1.0), instances, labels)
    tile = tissue()
    paste(tile, Donors([case], TILE), order(flips=(0, 1, 2)))
    assert np.bincount(tile.labels.ravel()).tolist()[1:] == [12, 12]


def test_the_same_order_gives_the_same_tile(donor):
    first, second, other = tissue(), tissue(), tissue()
    donors = Donors([donor], TILE)
    paste(first, donors, order(n=2, contrast=(0.6, 1.2), flips=(0, 1, 2), seed=4))
    paste(second, donors, order(n=2, contrast=(0.6, 1.2), flips=(0, 1, 2), seed=4))
    paste(other, donors, order(n=2, contrast=(0.6, 1.2), flips=(0, 1, 2), seed=5))
    assert np.array_equal(first.image, second.image)
    assert not np.array_equal(first.image, other.image)


def test_tiles_of_a_dataset_gain_lesions_and_move_with_them(donor, plan):
    settings = AugmentationSettings(
        paste_probability=1, paste_most=2, spatial_probability=1, intensity_probability=0
    )
    plan, sampling = plan.with_(tile_shape=TILE), SamplingSettings(lesion_share=0.0)
    pasted = TileDataset([donor], plan, sampling, settings, n_tiles=12, seed=0)
    gained = [pasted[i] for i in range(12)]
    assert sum(bool(tile["instances"].any()) for tile in gained) > 8
    for tile in gained:
        inside = (tile["image"][0] > 2.4) & tile["valid"]
        assert (inside <= (tile["label"] == 1)).all()
        assert ((tile["instances"] > 0) == (tile["label"] > 0)).all()


def test_settings_out_of_range_are_refused():
    for wrong in ({"paste_probability": 1.5}, {"paste_most": 0}, {"paste_contrast": (1.2, 0.6)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AugmentationSettings(**wrong)
