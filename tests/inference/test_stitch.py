import pytest
import torch

from lesionseg.data.tiling import TileGrid
from lesionseg.errors import ContentError, GeometryError
from lesionseg.inference.stitch import Stitcher
from lesionseg.ops.windows import gaussian_weight


def test_overlap_is_the_weighted_average() -> None:
    stitcher = Stitcher((3,), 1, torch.tensor([1.0, 3.0]))
    stitcher.add(torch.tensor([[2.0, 4.0]]), (slice(0, 2),))
    stitcher.add(torch.tensor([[8.0, 6.0]]), (slice(1, 3),))
    # the middle voxel: (3 · 4 + 1 · 8) / 4
    assert stitcher.finish().tolist() == [[2.0, 5.0, 6.0]]


@pytest.mark.parametrize("shape", [(33, 20, 17), (40, 25)])
def test_tiles_of_a_volume_put_together_are_the_volume(shape: tuple[int, ...]) -> None:
    volume = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    grid = TileGrid(shape, (16,) * len(shape), 0.5)
    stitcher = Stitcher(shape, 2, gaussian_weight(grid.tile_shape))
    for i in range(len(grid)):
        stitcher.add(volume[(slice(None), *grid.slices(i))], grid.slices(i))
    torch.testing.assert_close(stitcher.finish(), volume, atol=1e-6, rtol=1e-6)


def test_equals_a_naive_loop_over_voxels() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = gaussian_weight((4, 4))
    starts = [(0, 0), (0, 2), (2, 0), (2, 2)]
    tiles = torch.rand((4, 1, 4, 4), generator=generator)
    stitcher = Stitcher((6, 6), 1, weight)
    for (y, x), tile in zip(starts, tiles, strict=True):
        stitcher.add(tile, (slice(y, y + 4), slice(x, x + 4)))
    found = stitcher.finish()
    for v in range(6):
        for w in range(6):
            inside = [
                (float(weight[v - y, w - x]), float(tile[0, v - y, w - x]))
                for (y, x), tile in zip(starts, tiles, strict=True)
                if 0 <= v - y < 4 and 0 <= w - x < 4
            ]
            expected = sum(a * b for a, b in inside) / sum(a for a, _ in inside)
            assert float(found[0, v, w]) == pytest.approx(expected, abs=1e-6)


def test_half_precision_tiles_are_summed_in_float32() -> None:
    stitcher = Stitcher((2,), 1, torch.ones(2))
    stitcher.add(torch.ones((1, 2), dtype=torch.bfloat16), (slice(0, 2),))
    assert stitcher.finish().dtype == torch.float32


def test_refuses_uncovered_voxels() -> None:
    stitcher = Stitcher((3,), 1, torch.ones(2))
    stitcher.add(torch.ones(1, 2), (slice(0, 2),))
    with pytest.raises(ContentError, match="1 voxels"):
        stitcher.finish()


def test_refuses_to_go_on_after_the_end() -> None:
    stitcher = Stitcher((2,), 1, torch.ones(2))
    stitcher.add(torch.ones(1, 2), (slice(0, 2),))
    stitcher.finish()
    with pytest.raises(ContentError, match="finished"):
        stitcher.add(torch.ones(1, 2), (slice(0, 2),))
    with pytest.raises(ContentError, match="finished"):
        stitcher.finish()


@pytest.mark.parametrize("where", [slice(0, 3), slice(2, 4), slice(0, 1)])
def test_refuses_a_tile_that_does_not_fit(where: slice) -> None:
    with pytest.raises(GeometryError, match="does not fit"):
        Stitcher((3,), 1, torch.ones(2)).add(torch.ones(1, 2), (where,))


def test_refuses_a_weight_of_zero() -> None:
    with pytest.raises(ContentError, match="positive"):
        Stitcher((3,), 1, torch.tensor([0.0, 1.0]))
