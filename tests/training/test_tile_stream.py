"""Which tiles a step sees, on one process or on several, from the start or later."""

from itertools import chain, islice

import torch

from lesionseg.training.tile_stream import StepSampler, TileStream


def steps(n, **settings):
    return list(islice(StepSampler(**settings), n))


def test_processes_share_out_the_tiles_of_a_step_without_overlap():
    ranks = [steps(3, tiles_per_step=2, rank=r, world_size=3) for r in range(3)]
    together = [sorted(chain(*step)) for step in zip(*ranks, strict=True)]
    assert together == [list(range(6)), list(range(6, 12)), list(range(12, 18))]


def test_a_later_start_sees_what_it_would_have_seen():
    whole = steps(5, tiles_per_step=3, rank=1, world_size=2)
    assert steps(2, tiles_per_step=3, first_step=3, rank=1, world_size=2) == whole[3:]


def test_batches_stack_the_tiles_in_order(squares):
    stream = TileStream(squares(), 3, first_step=2, workers=0, pin=False)
    first, second = islice(stream, 2)
    assert first["image"].shape == (3, 1, 16, 16)
    assert first["labels"].shape == first["valid"].shape == (3, 16, 16)
    assert torch.equal(first["image"][1], squares()[7]["image"])
    assert torch.equal(second["image"][0], squares()[9]["image"])


def test_a_worker_process_gives_the_same_tiles(squares):
    here, there = (TileStream(squares(), 2, first_step=0, workers=w, pin=False) for w in (0, 1))
    for a, b in zip(islice(here, 3), islice(there, 3), strict=True):
        assert torch.equal(a["image"], b["image"])
