"""Preparing from and to URLs: the same plan, cases and tiles as from folders."""

import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.data.sampling import TileSampler
from lesionseg.data.transforms import PrepareSettings
from lesionseg.errors import ConfigError
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.io.remote.remote_folder import RemoteFolder
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.dataset.survey import take_survey
from lesionseg.pipeline.predict.recipe import predict
from lesionseg.pipeline.prepare.recipe import prepare
from lesionseg.pipeline.train.learning import prepare_cases
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.settings import TrainerSettings
from tests.inference.networks import Bright

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


@pytest.fixture(params=["memory", "http", "s3"])
def url(request, raw):
    if request.param == "http":
        return f"{request.getfixturevalue('web')[1]}/{raw.name}"
    place = f"memory://{uuid.uuid4().hex}"
    if request.param == "s3":
        place = request.getfixturevalue("s3")[1]
    url = f"{place}/{raw.name}"
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


def test_a_second_start_at_a_url_fetches_no_scan(url, tmp_path):
    data = DataSettings(url, validation_fraction=0.25, local_dir=str(tmp_path / "local"))
    first = take_survey(data, 0, tmp_path / "facts")
    shutil.rmtree(tmp_path / "local")
    again = take_survey(data, 0, tmp_path / "facts")
    assert again.burden == first.burden
    assert again.facts is not None
    assert all(again.facts.source(c) == first.facts.source(c) for c in again.dataset.cases)
    root = Path(again.dataset.root)
    assert [p.name for p in root.rglob("*.nii.gz") if p.stat().st_size > 1] == ["c0_0000.nii.gz"]


@pytest.mark.parametrize("store", ["memory", "s3"])
def test_scans_and_results_at_urls_are_those_of_folders(store, raw, plan, request, tmp_path):
    place = request.getfixturevalue("s3")[1] if store == "s3" else f"memory://{uuid.uuid4().hex}"
    scans = raw / "imagesTr"
    for file in scans.iterdir():
        RemoteFolder(f"{place}/scans").put(file.name, file)
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "bundle", Bright(), mine, "")

    def run(source, output, disk="disk"):
        return predict(
            tmp_path / "bundle",
            source,
            output,
            architectures={"mine": lambda _: Bright()},
            local_dir=tmp_path / disk,
        )

    run(scans, tmp_path / "out")
    rows = run(f"{place}/scans", f"{place}/results")
    assert [row.status for row in rows] == ["done"] * 4
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    results = RemoteFolder(f"{place}/results")
    assert sorted(file.path for file in results.list()) == sorted(wanted)
    assert all(results.read(n) == b for n, b in wanted.items() if n != "predictions.csv")
    # another machine goes on where the first one stopped; a case that fails leaves nothing
    bad = tmp_path / "bad"
    bad.write_bytes(b"no image")
    RemoteFolder(f"{place}/scans").put("c1_0000.nii.gz", bad)
    RemoteFolder(f"{place}/results").remove("c2_mask.nii.gz")
    rows = run(f"{place}/scans", f"{place}/results", "other disk")
    assert [row.status for row in rows] == ["kept", "failed", "done", "kept"]
    left = {name for name in wanted if not name.startswith("c1")}
    assert {file.path for file in results.list()} == left
    assert b"failed" in results.read("predictions.csv")
