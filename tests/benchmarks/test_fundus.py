"""The simulated colour photographs of the retina."""

from dataclasses import replace

import numpy as np
from PIL import Image

from benchmarks.phantoms.fundus import FundusSettings, draw_fundus, write_fundus
from lesionseg.io.layouts import read_dataset

SMALL = FundusSettings(side=128, n_lesions=12.0, n_distractors=8.0)


def test_lesions_are_brighter_than_their_surroundings():
    clear = replace(SMALL, contrast=(1.0, 1.0), noise=0.0, n_distractors=0.0)
    picture, mask = draw_fundus(np.random.default_rng(0), clear)
    green = picture[..., 1].astype(float)
    field = green > 5
    assert green[mask > 0].mean() > green[field & (mask == 0)].mean() + 20


def test_the_folder_is_a_colour_dataset_and_depends_on_its_seed_only(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_fundus(tmp_path / name, 1, 1, seed, SMALL)
    dataset = read_dataset(tmp_path / "a")
    assert [case.role for case in dataset.cases] == [None, "test"]
    first = np.asarray(Image.open(tmp_path / "a/imagesTr/SIMF000_0000.png"))
    assert first.shape == (128, 128, 3)
    assert (first == np.asarray(Image.open(tmp_path / "b/imagesTr/SIMF000_0000.png"))).all()
    assert (first != np.asarray(Image.open(tmp_path / "c/imagesTr/SIMF000_0000.png"))).any()
