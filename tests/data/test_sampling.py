from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.config import SamplingConfig
from lesionseg.core import Geometry
from lesionseg.data.cache import CachedCase, LesionIndex
from lesionseg.data.sampling import TileSampler

TILE = (8, 8, 8)


def make_case(name, lesions=(), shape=(20, 24, 28)):
    """A cached case without arrays; `lesions` are (first voxel, side)."""
    dims, ends = len(shape), [(first, [f + side - 1 for f in first]) for first, side in lesions]
    table = LesionIndex.from_json(
        dims,
        ids=range(1, len(lesions) + 1),
        labels=[1] * len(lesions),
        voxels=[side**dims for _, side in lesions],
        boxes=[[*first, *(v + 1 for v in last)] for first, last in ends],
        # as many seeds as a table of so many voxels has: the two corners, alternately
        seeds=[
            pair[k % 2]
            for (_, side), pair in zip(lesions, ends, strict=True)
            for k in range(min(side**3, 32))
        ],
    )
    geometry = Geometry.from_spacing(shape, (1,) * dims)
    return CachedCase(name, name, Path(name), "hash", geometry, 1, table, False)


def sampler_of(cases, n_tiles, seed=0, **settings):
    return TileSampler(cases, TILE, SamplingConfig.of(**settings), n_tiles=n_tiles, seed=seed)


@pytest.fixture
def cases():
    """One case with two lesions, one with one, and ten that are free of lesions."""
    marked = [make_case("a", [((2, 3, 4), 1), ((15, 15, 15), 3)]), make_case("b", [((9, 9, 9), 2)])]
    return marked + [make_case(f"free{i}") for i in range(10)]


def choices(sampler, epoch=0):
    return [sampler.choose(epoch, i) for i in range(len(sampler))]


def held(choice, case):
    """Rows of the case's lesions that have a seed in the tile."""
    table, start = case.lesions, np.array(choice.start)
    return [
        row
        for row in range(len(table))
        if any((start <= s).all() and (s < start + TILE).all() for s in table.seeds_of(row))
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_mix_is_exact_and_every_lesion_equally_likely_whatever_case_it_lies_in(cases, share):
    counts = Counter()
    for choice in choices(sampler_of(cases, 120, lesion_share=share), epoch=3):
        case, stop = cases[choice.case], np.array(choice.start) + TILE
        assert min(choice.start) >= 0
        assert (stop <= case.shape).all()
        found = held(choice, case)
        assert bool(found) == (choice.kind == "lesion")
        counts[(choice.case, *found) if found else "background"] += 1
    assert counts.pop("background", 0) == 120 - round(share * 120)
    assert list(counts.values()) == [round(share * 40)] * (3 if share else 0)


def test_lesions_are_chosen_alike_whoever_has_most_of_them():
    full = [((i % 10 * 2, i // 10 * 2, 0), 1) for i in range(60)]
    cases = [make_case("full", full)] + [make_case(f"p{i}", [((9, 9, 9), 2)]) for i in range(20)]
    sampler = sampler_of(cases, 420, lesion_share=1)
    shares = Counter(c.case for c in choices(sampler))
    assert shares[0] == pytest.approx(420 * 60 / 80, abs=2)
    assert "80 lesions, 21 patients; at most 75% from one patient" in sampler.mix


def test_a_volume_smaller_than_the_tile_sits_in_its_middle():
    case = make_case("a", [((2, 3, 4), 1)], shape=(5, 20, 8))
    sampler = sampler_of([case], 10)
    assert {(c.start[0], c.start[2]) for c in choices(sampler)} == {(-1, 0)}


def test_background_is_taken_around_voxels_that_teach():
    seeds = ((2, 3, 4), (17, 20, 25), (10, 4, 20))
    sparse = replace(make_case("sparse"), has_valid=True, valid_seeds=seeds)
    blind = replace(make_case("blind"), has_valid=True, valid_seeds=())
    sampler = sampler_of([sparse, blind], 60)
    met = np.zeros(3, bool)
    for choice in choices(sampler):
        assert choice.case == 0
        away = np.array(seeds) - choice.start
        inside = ((away >= 0) & (away < TILE)).all(axis=1)
        assert inside.any()
        met |= inside
    assert met.all()
