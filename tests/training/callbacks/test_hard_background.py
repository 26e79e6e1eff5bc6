"""Hard background: found in one epoch, shown two epochs later, kept by a checkpoint."""

import pytest
import torch

from lesionseg.core import Geometry, Volume
from lesionseg.data.augmentation.augment import AugmentationSettings
from lesionseg.data.cache.cached_case import read_cached_case, write_cached_case
from lesionseg.data.hard_places import HardPlaces, HardPoint
from lesionseg.data.prepared_case import PreparedCase
from lesionseg.data.prepared_reference import PreparedReference
from lesionseg.data.sampling import SamplingSettings
from lesionseg.data.tile_dataset import TileDataset
from lesionseg.losses import FocalLoss
from lesionseg.models import build_network
from lesionseg.training.callbacks.focal_balance import FocalBalance
from lesionseg.training.callbacks.hard_background import WatchBackground, lesion_score
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.fit import fit_tiles
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import TrainerSettings

SHAPE = (40, 44)


class StopAt(AfterStep):
    """Ends training after so many steps, as if it had been interrupted then."""

    def __init__(self, step):
        self.step = step

    def after_step(self, trainer, module):
        trainer.should_stop = module.counters.steps >= self.step or module.progress >= 1


@pytest.fixture
def make_tiles(tmp_path, rng, make_plan):
    instances = torch.zeros(SHAPE, dtype=torch.int32).numpy()
    instances[3:6, 4:8] = 1
    image = rng.normal(size=(1, *SHAPE)).astype("float32")
    image[0, 30:33, 30:33] = 20  # as bright as nothing else
    reference = PreparedReference((instances > 0).astype("uint8"), instances, (1,), None)
    volume = Volume(image, Geometry.from_spacing(SHAPE, (1.0, 1.0)))
    write_cached_case(tmp_path, PreparedCase("a", "a", volume, reference), reference, "hash")
    case = read_cached_case(tmp_path)

    def make(n_tiles=8):
        return TileDataset(
            [case],
            make_plan(),
            SamplingSettings(lesion_share=0.25, hard_share=0.5),
            AugmentationSettings(spatial_probability=0.5),
            n_tiles=n_tiles,
            seed=0,
        )

    return make


def kinds(tiles, epoch):
    return [tiles.choice(epoch * tiles.n_tiles + i).kind for i in range(tiles.n_tiles)]


def test_only_the_worst_places_of_an_epoch_are_kept_and_used_two_epochs_later():
    places = HardPlaces(2, capacity=2)
    for number, score in enumerate([0.1, 3.0, -1.0, 2.0]):
        places.add(4, number, HardPoint(0, (number, 7)), score)
    assert places.of(6) == (HardPoint(0, (1, 7)), HardPoint(0, (3, 7)))
    assert places.of(5) == places.of(7) == ()
    places.add(8, 99, HardPoint(1, (0, 0)), 0.0)  # the same slot, four epochs on
    assert places.of(6) == ()
    assert places.of(10) == (HardPoint(1, (0, 0)),)


def test_a_reported_voxel_comes_back_in_the_middle_of_later_tiles(make_tiles):
    tiles = make_tiles()
    assert "hard" not in kinds(tiles, 0) + kinds(tiles, 1)
    reported = 0
    for number in range(tiles.n_tiles):
        bright = tiles[number]["image"][0] > 10
        if tiles.choice(number).kind == "background" and bright.any():
            voxel = tuple(bright.nonzero()[len(bright.nonzero()) // 2].tolist())
            tiles.report(number, voxel, 1.0)
            reported += 1
    assert reported
    for point in tiles.hard.of(2):
        assert all(29 <= c <= 34 for c in point.centre)
    assert kinds(tiles, 2).count("hard") == 4
    assert "hard" not in kinds(tiles, 3)


def test_the_score_follows_any_lesion_class():
    logits = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]]).permute(1, 0, 2)  # [1, 2, 2]
    assert lesion_score(logits, "sigmoid").tolist() == [[3.0, 0.0]]
    assert lesion_score(logits, "softmax").tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_finds_hard_background_and_resumes_with_it(
    make_tiles, make_plan, tmp_path, workers
):
    settings = TrainerSettings(
        max_steps=14,
        steps_per_epoch=4,
        workers=workers,
        accelerator="cpu",
        precision="32-true",
        progress=False,
    )

    def train(run_dir, *steps):
        for last in steps:
            tiles = make_tiles()
            torch.manual_seed(0)
            result = fit_tiles(
                build_network(make_plan(), seed=0),
                make_plan(),
                tiles,
                Learning(FocalLoss(), settings),
                tmp_path / run_dir,
                callbacks=[StopAt(last)],
            )
        return tiles, result

    tiles, whole = train("whole", 14)
    assert "hard" in kinds(tiles, 2)
    again, resumed = train("parts", 6, 14)
    assert again.hard.of(3) == tiles.hard.of(3) != ()
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_watchers_of_a_step_see_the_same_in_any_order(make_tiles, train, tmp_path):
    """Who gets gradient and where the background is worst do not depend on who watches first."""

    def run(name, backwards):
        tiles, run_dir = make_tiles(), tmp_path / name
        reported = []
        watchers = [
            FocalBalance(run_dir),
            WatchBackground(lambda *place: reported.append(place)),
        ]
        torch.manual_seed(0)
        train(
            run_dir=run_dir,
            tiles=tiles,
            max_steps=4,
            log_every=2,
            callbacks=watchers[::-1] if backwards else watchers,
        )
        return reported, (run_dir / "focal_balance.csv").read_text().split("\n")

    first, second = run("first", backwards=False), run("second", backwards=True)
    assert len(first[0]) == len(second[0]) > 0
    assert {number for number, _, _ in first[0]} <= set(range(8))
    assert first[0] == second[0]
    rows = [[line.split(",")[2:] for line in lines] for _, lines in (first, second)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 2
