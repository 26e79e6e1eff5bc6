"""Tiles of prepared cases, and a training on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.config import AugmentConfig
from lesionseg.core import Geometry, Reference, Volume
from lesionseg.data.cache import read_cached_case, write_cached_case
from lesionseg.data.preprocess import PreparedCase
from lesionseg.data.tiles import TileDataset
from lesionseg.io.files import read_csv
from lesionseg.losses import FocalLoss, LesionBalancedLoss, nearest_lesions
from lesionseg.models import build_network
from lesionseg.training.batch_targets import BatchTargets
from lesionseg.training.fit import fit, tiles_of
from lesionseg.training.tile_stream import to_batch
from tests.training.conftest import make_config


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
        n = int(instances.max())
        reference = Reference(geometry, labels, instances, (1,) * n)
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
    fit(network, plan, tiles_of(unknown, plan, cfg), cfg, tmp_path / "run", loss=FocalLoss())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_loss_that_needs_nearest_lesions_gets_them(cases, plan, tmp_path):
    cfg = make_config(max_steps=5, workers=1)
    tiles = tiles_of(cases, plan, cfg)
    run = tmp_path / "run"
    batch = BatchTargets(nearest=True)(to_batch([tiles[0], tiles[1]]))
    known = batch["instances"].masked_fill(~batch["valid"], 0)
    assert torch.equal(batch["nearest"].int(), nearest_lesions(known))
    result = fit(build_network(plan), plan, tiles, cfg, run, loss=LesionBalancedLoss())
    assert (result.steps, result.skipped, result.device) == (5, 0, "cpu")
    (row,) = read_csv(run / "metrics.csv")
    terms = ("loss_dice", "loss_focal", "loss_lesion_dice", "loss_lesion_focal")
    assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in terms), rel=1e-4)
    assert float(row["loss_lesion_dice"]) > 0
