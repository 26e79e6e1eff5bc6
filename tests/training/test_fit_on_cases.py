"""Tiles of prepared cases, and a training on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.config import AugmentConfig, DetectionConfig, SamplingConfig
from lesionseg.core import Geometry, Reference, Volume
from lesionseg.data.cache import read_cached_case, write_cached_case
from lesionseg.data.preprocess import PreparedCase
from lesionseg.data.tiles import TileDataset
from lesionseg.io.text import read_csv
from lesionseg.losses import FocalLoss, LesionBalancedLoss, nearest_lesions
from lesionseg.models import build_network
from lesionseg.training.batch_targets import BatchTargets, renumber
from lesionseg.training.fit import STEPS_PER_EPOCH, fit, with_lesion_in_each_step
from lesionseg.training.module import count_tiles_per_step
from lesionseg.training.objective import make_objective
from lesionseg.training.tile_stream import to_batch
from tests.training.conftest import make_config, make_module


@pytest.fixture
def cases(tmp_path, rng):
    """Write one case with two lesions and one without. Return both."""
    found = []
    for name in ("ill", "well"):
        instances = np.zeros((20, 24, 22), np.int32)
        if name == "ill":
            instances[3:6, 4:8, 5:9] = 1
            instances[14:16, 18:20, 10:13] = 2
        image = rng.normal(size=(1, *instances.shape)).astype(np.float32) + 3 * (instances > 0)
        geometry = Geometry.from_spacing(instances.shape, (1, 1, 1))
        labels = (instances > 0).astype(np.uint8)
        reference = Reference(geometry, labels, instances, (1,) * int(instances.max()))
        (tmp_path / name).mkdir()
        prepared = PreparedCase(name, name, Volume(image, geometry), reference)
        write_cached_case(tmp_path / name, prepared, "hash")
        found.append(read_cached_case(tmp_path / name))
    return found


def test_batch_marks_the_unannotated_labels_of_each_tile(cases, plan):
    """The entry is missing if every case annotates all labels."""

    def stream(*cases):
        return TileDataset(cases, plan, None, AugmentConfig.of(), n_tiles=6, seed=0)

    tiles = stream(replace(cases[0], unannotated=(1,)), cases[1])
    expected = to_batch([tiles[number] for number in range(6)])["unannotated"]
    of_case = [[tiles.raw(number).choice.case == 0] for number in range(6)]
    assert expected.tolist() == of_case
    assert {True, False} == {each for (each,) in of_case}
    assert "unannotated" not in to_batch([stream(*cases)[0]])


def test_label_that_no_case_annotates_changes_no_weights(cases, plan, tmp_path):
    """The plan has a single label, so any gradient would come from it."""
    network = build_network(plan)
    before = [p.clone() for p in network.parameters()]
    unknown = [replace(case, unannotated=(1,)) for case in cases]
    cfg = make_config(max_steps=2, optim={"weight_decay": 0.0})
    module = make_module(plan, cfg, network, FocalLoss())
    fit(module, TileDataset(unknown, plan, cfg.sampling, cfg.augment), tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_loss_that_needs_nearest_lesions_gets_them(cases, plan, tmp_path):
    cfg = make_config(max_steps=5, workers=1)
    tiles = TileDataset(cases, plan, cfg.sampling, cfg.augment)
    run = tmp_path / "run"
    batch = BatchTargets(nearest=True)(to_batch([tiles[0], tiles[1]]))
    known = batch["instances"].masked_fill(~batch["valid"], 0)
    assert torch.equal(batch["nearest"].int(), nearest_lesions(known))
    result = fit(make_module(plan, cfg, loss=LesionBalancedLoss()), tiles, run)
    assert (result.steps, result.skipped, result.device) == (5, 0, "cpu")
    (row,) = read_csv(run / "metrics.csv")
    terms = ("loss_dice", "loss_focal", "loss_lesion_dice", "loss_lesion_focal")
    assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in terms), rel=1e-4)
    assert float(row["loss_lesion_dice"]) > 0


@pytest.mark.parametrize(("batches", "share", "number"), [(1, 0.5, 1), (1, 0.1, 1), (2, 0.3, 1)])
def test_each_step_of_two_or_more_tiles_has_a_lesion_tile(cases, plan, batches, share, number):
    """Accumulated batches belong to one step."""
    cfg = make_config(max_steps=1, accumulate_grad_batches=batches)
    n = count_tiles_per_step(cfg.trainer, plan.with_(batch_size=2))
    sampling = with_lesion_in_each_step(SamplingConfig.of(lesion_share=share), n)
    tiles = TileDataset(cases, plan, sampling, n_tiles=STEPS_PER_EPOCH * n)
    kinds = [tiles.sampler.choose(*divmod(i, tiles.n_tiles)).kind for i in range(len(tiles))]
    per_step = 2 * batches
    steps = [kinds[i : i + per_step] for i in range(0, len(kinds), per_step)]
    counts = {step.count("lesion") for step in steps}
    assert min(counts) == number
    assert max(counts) <= number + 1


def test_valid_lesions_of_each_tile_are_numbered_from_one():
    instances = torch.tensor([[0, 700, 3, 700], [0, 0, 0, 9], [0, 0, 0, 0]])
    valid = torch.ones_like(instances, dtype=torch.bool)
    valid[0, 2] = False
    found = renumber(instances, valid)
    assert found.tolist() == [[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert found.dtype == torch.uint8
    many = torch.arange(301)[None]
    assert renumber(many, many >= 0).dtype == torch.int32
    assert torch.equal(renumber(many, many >= 0), many.int())


def test_cells_end_at_an_equal_distance_in_mm(cases, plan):
    """With 1 × 1 × 4 mm, ten voxels of the finest axis are 2.5 slices."""
    coarse = plan.with_(spacing_mm=(4.0, 1.0, 1.0))
    objective = make_objective(coarse, LesionBalancedLoss(), DetectionConfig.of())
    assert objective.batch_targets.reach == (2.5, 10.0, 10.0)
