"""A batch changed at once is what its tiles are one by one, in a launch or two of each kind."""

from statistics import mean

import numpy as np
import pytest
import torch
from benchmarks.speed.operation_counts import OperationCounts

from lesionseg.data.augmentation.augment import AugmentationSettings, apply, build_augmentation
from lesionseg.data.augmentation.batch import finish, pack

MOST_LAUNCHES, MEAN_LAUNCHES = 24, 15


@pytest.fixture
def drawn(plan):
    """Changes of tiles of a plan, and pieces of a random volume for them."""

    def draw(n, seed=0, plan=plan, highest=3, **settings):
        augmentation = build_augmentation(AugmentationSettings(**settings), plan)
        rng = np.random.default_rng(seed)
        changes = [augmentation.draw(torch.Generator().manual_seed(seed + i)) for i in range(n)]
        pieces = []
        for change in changes:
            size = [stop - start for start, stop in change.movement.source(plan.tile_shape)]
            image = rng.normal(size=(len(plan.channel_names), *size)).astype(np.float16)
            ids = rng.integers(0, highest, size)
            arrays = {"image": image, "labels": (ids > 0).astype(np.uint8)}
            arrays["instances"] = ids.astype(np.uint8 if highest < 256 else np.int32)
            arrays["valid"] = rng.random(size) < 0.9
            pieces.append({key: torch.from_numpy(a) for key, a in arrays.items()})
        return pieces, changes, plan.tile_shape

    return draw


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"spatial_probability": 0.0, "intensity_probability": 0.0},
        {"spatial_probability": 1.0, "elastic_share": 0.5, "intensity_probability": 0.0},
        {"spatial_probability": 0.5, "intensity_probability": 0.5},
        {"thick_slice_mm": (3.0, 9.0), "thick_slice_probability": 0.7},
    ],
)
@pytest.mark.parametrize("kind", ["3d", "2d", "two_channels"])
def test_the_tiles_of_a_batch_are_those_made_one_by_one(drawn, plan, settings, kind):
    if kind == "2d":
        plan = plan.with_(dims=2, spacing_mm=(1.0, 1.0), tile_shape=(32, 24))
        settings = {name: v for name, v in settings.items() if "thick" not in name}
    elif kind == "two_channels":
        plan = plan.with_(channel_names=("T1", "T2"), normalisation=plan.normalisation * 2)
    pieces, changes, shape = drawn(5, plan=plan, noise_std=0.0, **settings)
    batch = finish(pack(pieces, changes, shape))
    for b, (piece, change) in enumerate(zip(pieces, changes, strict=True)):
        alone = apply(piece, change, shape)
        # float16 noise is steep: a coordinate's rounding shows
        torch.testing.assert_close(batch["image"][b], alone["image"], atol=5e-3, rtol=0)
        for name in ("labels", "instances", "valid"):
            assert (batch[name][b] == alone[name]).float().mean() > 0.999
    assert batch["image"].dtype == torch.float32
    dtypes = [batch[name].dtype for name in ("labels", "instances", "valid")]
    assert dtypes == [torch.uint8, torch.int32, torch.bool]


def test_flips_move_no_voxel_by_half(drawn):
    pieces, changes, shape = drawn(3, spatial_probability=0.0, intensity_probability=0.0)
    batch = finish(pack(pieces, changes, shape))
    for b, (piece, change) in enumerate(zip(pieces, changes, strict=True)):
        for name in ("labels", "instances", "valid"):
            assert torch.equal(batch[name][b], apply(piece, change, shape)[name].to(batch[name]))


def test_many_lesions_keep_their_numbers(drawn):
    pieces, changes, shape = drawn(2, highest=70_001, spatial_probability=0.0)
    batch = finish(pack(pieces, changes, shape))
    expected = apply(pieces[1], changes[1], shape)["instances"]
    assert torch.equal(batch["instances"][1], expected)
    assert expected.max() > 2**16 - 1


def test_noise_is_of_the_deviation_drawn_and_the_same_each_time(drawn):
    pieces, changes, shape = drawn(2, spatial_probability=0.0, intensity_probability=1.0)
    for piece in pieces:
        piece["image"].zero_()
    packed = pack(pieces, changes, shape)
    packed.layout.pop("gamma", None)
    image = finish(packed)["image"]
    assert torch.equal(image, finish(packed)["image"])
    for b, change in enumerate(changes):
        assert image[b].std().item() == pytest.approx(change.intensity.noise, rel=0.05)


def test_a_batch_takes_few_launches_however_many_its_tiles(drawn):
    def launches(n, seed, **settings):
        packed = pack(*drawn(n, seed, **settings))
        with OperationCounts("cpu") as counts:
            finish(packed)
        assert counts.waits == {}
        return counts.launches.total() + 1  # the copy

    everything = {"spatial_probability": 1.0, "elastic_share": 1.0, "intensity_probability": 1.0}
    assert launches(2, 0, **everything) == launches(5, 0, **everything) <= MOST_LAUNCHES
    assert mean(launches(2, seed) for seed in range(0, 80, 2)) <= MEAN_LAUNCHES


def test_all_of_a_batch_lies_in_one_piece_of_memory(drawn):
    packed = pack(*drawn(2, spatial_probability=1.0))
    first = packed.data.untyped_storage().data_ptr()
    assert all(packed[name].untyped_storage().data_ptr() == first for name in packed.layout)
    assert "absent" not in packed
