"""Tiles of a fixed seed: their places, and their voxels after augmentation."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.config import AugmentConfig, SamplingConfig
from lesionseg.data.cache import fill_cache
from lesionseg.data.tiles import TileDataset
from lesionseg.io import read_dataset
from tests.golden.common import check, gist
from tests.golden.small_network import make_phantom, make_plan_and_network, write_nifti

N_TILES = 24
TILE = (8, 16, 16)
AFFINE = np.diag([0.9, 1.1, 3.0, 1.0])
OFF = {"spatial_probability": 0.0, "intensity_probability": 0.0}
UNFLIPPED = ("spatial", "intensity")
CHANGES = {  # None: no augmentation
    "none": None,
    "flips": OFF,
    "spatial": {**OFF, "spatial_probability": 1.0},
    "intensity": {**OFF, "intensity_probability": 1.0},
    "default": {},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return prepared cases and, by name, a sequence of tiles."""
    root = tmp_path_factory.mktemp("golden") / "data"
    root.mkdir()
    lines = ["case,image,reference,group"]
    for seed in range(4):
        image = make_phantom(seed)
        labels = (image > 145).astype(np.uint8) * (seed != 2)  # one is free of lesions
        write_nifti(root / f"image{seed}.nii.gz", image, AFFINE)
        write_nifti(root / f"label{seed}.nii.gz", labels, AFFINE)
        lines.append(f"c{seed},image{seed}.nii.gz,label{seed}.nii.gz,g{seed}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    dataset = read_dataset(root)
    plan = replace(make_plan_and_network()[0], tile_shape=TILE)
    cases = fill_cache(dataset, dataset.cases, plan, root.parent / "cache")
    sampling = SamplingConfig.of(lesion_share=0.5)
    sets = {}
    for name, settings in CHANGES.items():
        changes = None if settings is None else AugmentConfig.of(**settings)
        sets[name] = TileDataset(cases, plan, sampling, changes, n_tiles=N_TILES, seed=5)
    return cases, sets


def boxes(instances):
    """Return box and number of voxels of each lesion."""
    found = []
    for number in np.unique(instances[instances > 0]):
        places = np.argwhere(instances == number)
        found.append([*places.min(0), *(places.max(0) + 1), len(places)])
    return found


def test_prepared_cases_equal_the_golden_values(prepared):
    cases, _ = prepared
    found = {}
    for case in cases:
        found[case.case] = {
            "shape": case.shape,
            "affine": case.geometry.affine,
            "image": gist(np.asarray(case.image, np.float32), 12),
            "labels": int((np.asarray(case.labels) > 0).sum()),
            "boxes": boxes(np.asarray(case.instances)),
        }
    check("prepared", found, rtol=1e-4, atol=1e-4)


def test_places_of_tiles_equal_the_golden_values(prepared):
    sampler = prepared[1]["none"].sampler
    choices = [sampler.choose(*divmod(i, N_TILES)) for i in range(3 * N_TILES)]
    check("tiles_starts", {"tiles": [[c.case, *c.start, c.kind] for c in choices]})


@pytest.mark.parametrize("name", CHANGES)
def test_voxels_of_tiles_equal_the_golden_values(name, prepared, monkeypatch):
    if name in UNFLIPPED:
        monkeypatch.setattr("lesionseg.data.augment.FLIP_PROBABILITY", 0.0)
    found = {}
    for i in range(N_TILES):
        item = prepared[1][name][i]
        image = np.asarray(item["image"][0])
        instances = np.asarray(item["instances"][0])
        found[str(i)] = {
            "image": [image.mean(), image.std(), *gist(image, 6)],
            "labels": gist(item["label"], 0),
            "valid": int(np.asarray(item["valid"]).sum()),
            "boxes": boxes(instances),
        }
    check(f"tiles_{name}", found, rtol=1e-4, atol=1e-3)
