"""The sampler: its mix of lesion and background tiles, and the positions of tiles."""

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
    """Make a cached case without arrays. `lesions` are (first voxel, side)."""
    dims = len(shape)
    corners = [(np.array(first), np.add(first, side - 1)) for first, side in lesions]
    # the two corners alternately, as many seeds as a real table has
    seeds = [
        ends[k % 2]
        for ends, (_, side) in zip(corners, lesions, strict=True)
        for k in range(min(side**3, 32))
    ]
    table = LesionIndex.from_json(
        dims,
        ids=range(1, len(lesions) + 1),
        labels=[1] * len(lesions),
        voxels=[side**dims for _, side in lesions],
        boxes=[[*first, *(last + 1)] for first, last in corners],
        seeds=seeds,
    )
    geometry = Geometry.from_spacing(shape, (1,) * dims)
    return CachedCase(name, name, Path(name), "hash", geometry, 1, table, False)


def make_sampler(cases, n_tiles, seed=0, **settings):
    return TileSampler(cases, TILE, SamplingConfig.of(**settings), n_tiles=n_tiles, seed=seed)


@pytest.fixture
def cases():
    """Return a case with two lesions, a case with one lesion, and ten lesion-free cases."""
    two = make_case("a", [((2, 3, 4), 1), ((15, 15, 15), 3)])
    one = make_case("b", [((9, 9, 9), 2)])
    return [two, one, *(make_case(f"free{i}") for i in range(10))]


def choose_all(sampler, epoch=0):
    return [sampler.choose(epoch, i) for i in range(len(sampler))]


def lesions_in_tile(choice, case):
    """Return the rows of the case's lesions that have a seed in the tile."""
    rows = []
    for row in range(len(case.lesions)):
        place = case.lesions.seeds_of(row) - choice.start
        if ((place >= 0) & (place < TILE)).all(axis=1).any():
            rows.append(row)
    return rows


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_share_of_lesion_tiles_is_exact_and_every_lesion_is_equally_likely(cases, share):
    counts = Counter()
    for choice in choose_all(make_sampler(cases, 120, lesion_share=share), epoch=3):
        case = cases[choice.case]
        stop = np.array(choice.start) + TILE
        assert min(choice.start) >= 0
        assert (stop <= case.shape).all()
        found = lesions_in_tile(choice, case)
        assert bool(found) == (choice.kind == "lesion")
        counts[(choice.case, *found) if found else "background"] += 1
    assert counts.pop("background", 0) == 120 - round(share * 120)
    assert list(counts.values()) == [round(share * 40)] * (3 if share else 0)


def test_every_lesion_is_equally_likely_if_one_case_has_most_of_them():
    many = make_case("full", [((i % 10 * 2, i // 10 * 2, 0), 1) for i in range(60)])
    cases = [many, *(make_case(f"p{i}", [((9, 9, 9), 2)]) for i in range(20))]
    sampler = make_sampler(cases, 420, lesion_share=1)
    shares = Counter(c.case for c in choose_all(sampler))
    assert shares[0] == pytest.approx(420 * 60 / 80, abs=2)
    assert "80 lesions, 21 patients; at most 75% from one patient" in sampler.mix


@pytest.mark.parametrize(
    ("share", "per_step", "numbers"),
    [
        (0.5, 2, {1}),
        (0.5, 3, {1, 2}),
        (0.3, 4, {1, 2}),
        (0.5, 16, {8}),
        (1.0, 2, {2}),
        (0.1, 1, {0, 1}),
    ],
)
def test_lesion_tiles_are_spread_evenly_over_steps(cases, share, per_step, numbers):
    sampler = make_sampler(cases, 50 * per_step, lesion_share=share)
    for epoch in range(20):
        kinds = np.array([choice.kind for choice in choose_all(sampler, epoch)])
        assert set((kinds.reshape(50, per_step) == "lesion").sum(axis=1)) == numbers
        assert (kinds == "lesion").sum() == round(share * 50 * per_step)


def test_background_tiles_come_from_all_cases_equally_often():
    """Lesions cover most of one case. It has as many background tiles, most of them free."""
    full = make_case("full", [((2 * i, 2 * j, 2), 1) for i in range(9) for j in range(9)])
    cases = [full, *(make_case(f"free{i}") for i in range(3))]
    sampler = make_sampler(cases, 800, lesion_share=0.0)
    choices = choose_all(sampler)
    numbers = Counter(choice.case for choice in choices)
    assert min(numbers.values()) > 150  # of 200 expected ones
    of_full = [choice for choice in choices if choice.case == 0]
    assert sum(not lesions_in_tile(choice, full) for choice in of_full) > 0.9 * len(of_full)


def test_mix_without_lesions_is_all_background():
    sampler = make_sampler([make_case("free")], 10, lesion_share=0.5)
    assert {choice.kind for choice in choose_all(sampler)} == {"background"}
    assert sampler.mix == "All 10 tiles per epoch are background, as no case has a lesion."


def test_volume_smaller_than_the_tile_is_in_its_middle():
    case = make_case("a", [((2, 3, 4), 1)], shape=(5, 20, 8))
    sampler = make_sampler([case], 10)
    assert {(c.start[0], c.start[2]) for c in choose_all(sampler)} == {(-1, 0)}


def test_background_tiles_contain_valid_voxels():
    seeds = ((2, 3, 4), (17, 20, 25), (10, 4, 20))
    sparse = replace(make_case("sparse"), has_valid=True, valid_seeds=seeds)
    blind = replace(make_case("blind"), has_valid=True, valid_seeds=())
    sampler = make_sampler([sparse, blind], 60)
    has_tile = np.zeros(3, bool)
    for choice in choose_all(sampler):
        assert choice.case == 0
        away = np.array(seeds) - choice.start
        inside = ((away >= 0) & (away < TILE)).all(axis=1)
        assert inside.any()
        has_tile |= inside
    assert has_tile.all()
