"""Preparing from and to URLs: the same plan, cases and tiles as from folders."""

import uuid
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.data.sampling import TileSampler
from lesionseg.data.transforms import PrepareSettings
from lesionseg.errors import ConfigError
from lesionseg.io.formats.volumes import write_volume
from lesionseg.io.remote.remote_folder import RemoteFolder
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.dataset.survey import take_survey
from lesionseg.pipeline.prepare.recipe import prepare
from lesionseg.pipeline.train.learning import prepare_cases
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.settings import TrainerSettings

pytest.importorskip("fsspec")


@pytest.fixture
def raw(tmp_path):
    """An nnU-Net raw folder of four cases, below the folder of the web server."""
    root = tmp_path / "www" / "Dataset001_Toy"
    rng = np.random.default_rng(0)
    geometry = Geometry.from_spacing((16, 18, 20), (1.0, 1.0, 1.0))
    for i in range(4):
        labels = np.zeros((1, 16, 18, 20), np.uint8)
        labels[0, 4:8, 5:9, 6 + i : 10 + i] = 1
        image = rng.normal(size=labels.shape).astype(np.float32) + 3 * labels
        write_volume(root / "imagesTr" / f"c{i}_0000.nii.gz", Volume(image, geometry))
        write_volume(root / "labelsTr" / f"c{i}.nii.gz", Volume(labels, geometry))
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1},'
        ' "numTraining": 4, "file_ending": ".nii.gz"}'
    )
    return root


@pytest.fixture(params=["memory", "http"])
def url(request, raw):
    if request.param == "http":
        return f"{request.getfixturevalue('web')[1]}/{raw.name}"
    url = f"memory://{uuid.uuid4().hex}/{raw.name}"
    for file in raw.rglob("*.*"):
        RemoteFolder(url).put(file.relative_to(raw).as_posix(), file)
    return url


def run(data, folder):
    prepare(
        data,
        PlanOverrides(),
        TrainerSettings(max_steps=1, accelerator="cpu"),
        PrepareSettings(),
        run_dir=str(folder),
        check=False,
        identifiers=False,
        seed=0,
        config={"seed": 0},
    )
    plan = Plan.from_json((folder / "plan.json").read_text())
    return plan, prepare_cases(take_survey(data, 0), plan, data, folder)


def test_a_dataset_and_a_cache_at_urls_give_what_folders_give(raw, url, tmp_path):
    local = tmp_path / "local"
    by_path = DataSettings(str(raw), validation_fraction=0.25)
    at_url = DataSettings(
        url,
        validation_fraction=0.25,
        cache_dir=f"memory://{uuid.uuid4().hex}/cache",
        local_dir=str(local),
    )
    plan, cases = run(by_path, tmp_path / "a" / "run")
    same_plan, same_cases = run(at_url, tmp_path / "b" / "run")
    assert plan.tile_shape == same_plan.tile_shape
    assert [c.source for c in cases] == [c.source for c in same_cases]
    assert all(Path(local) in c.folder.parents for c in same_cases)
    sampler = TileSampler(cases, plan.tile_shape, n_tiles=4, seed=0)
    twin = TileSampler(same_cases, plan.tile_shape, n_tiles=4, seed=0)
    assert [sampler.choose(0, i) for i in range(4)] == [twin.choose(0, i) for i in range(4)]
    for mine, other in zip(same_cases, cases, strict=True):
        np.testing.assert_array_equal(mine.image, other.image)


def test_no_room_for_copies_is_refused():
    with pytest.raises(ConfigError, match="local_gb"):
        DataSettings("s3://bucket/set", local_gb=0)
