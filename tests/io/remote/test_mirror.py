import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.remote import mirror as mirrors
from lesionseg.io.remote.local_disk import LocalDisk
from lesionseg.io.remote.mirror import bring, mirror, send, states
from lesionseg.io.remote.remote_folder import RemoteFolder
from lesionseg.io.volumes import write_volume

pytest.importorskip("fsspec")


@pytest.fixture
def raw(tmp_path):
    """An nnU-Net raw folder of three cases, random so that nothing shrinks."""
    root = tmp_path / "www" / "Dataset001_Toy"  # below the folder of the web server
    rng = np.random.default_rng(0)
    geometry = Geometry.from_spacing((8, 9, 10), (1.0, 1.0, 1.0))
    for i in range(3):
        image = rng.normal(size=(1, 8, 9, 10)).astype(np.float32)
        labels = np.zeros((1, 8, 9, 10), np.uint8)
        labels[0, 2:4, 3, 4] = 1
        write_volume(root / "imagesTr" / f"c{i}_0000.nii.gz", Volume(image, geometry))
        write_volume(root / "labelsTr" / f"c{i}.nii.gz", Volume(labels, geometry))
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": 1},'
        ' "numTraining": 3, "file_ending": ".nii.gz"}'
    )
    return root


def upload(root, url):
    for file in root.rglob("*.*"):
        if file.is_file():
            RemoteFolder(url).put(file.relative_to(root).as_posix(), file)


@pytest.fixture(params=["memory", "file", "http", "s3"])
def url(request, raw):
    if request.param == "http":
        return f"{request.getfixturevalue('web')[1]}/{raw.name}"
    if request.param == "file":
        return f"file://{raw}"
    place = f"memory://{uuid.uuid4().hex}"
    if request.param == "s3":
        place = request.getfixturevalue("s3")[1]
    url = f"{place}/{raw.name}"
    upload(raw, url)
    return url


def here(root):
    return sorted(f.name for f in root.rglob("*.nii.gz") if f.stat().st_size > 1)


def test_a_dataset_at_a_url_is_that_of_its_folder_and_images_come_when_they_are_read(
    raw, url, tmp_path
):
    root = mirror(url, LocalDisk(tmp_path / "disk"))
    assert root.name == raw.name
    assert here(root) == []
    mine, other = read_dataset(root), read_dataset(raw)
    assert [c.case for c in mine.cases] == [c.case for c in other.cases]
    assert here(root) == ["c0_0000.nii.gz"]  # its header says how many axes there are
    case, same = read_case(mine.cases[2], mine), read_case(other.cases[2], other)
    np.testing.assert_array_equal(case.image.array, same.image.array)
    np.testing.assert_array_equal(case.reference.labels, same.reference.labels)
    assert here(root) == ["c0_0000.nii.gz", "c2.nii.gz", "c2_0000.nii.gz"]


def test_changed_new_and_vanished_files_are_followed_and_others_kept(raw, url, tmp_path):
    disk = LocalDisk(tmp_path / "disk")
    root = mirror(url, disk)
    for i in range(3):
        bring(root / "imagesTr" / f"c{i}_0000.nii.gz")
    changed = raw / "imagesTr" / "c1_0000.nii.gz"
    changed.write_bytes(b"x" * 777)
    os.utime(changed, (1e9, 1e9))  # a web server tells full seconds
    (raw / "imagesTr" / "c2_0000.nii.gz").unlink()
    (raw / "imagesTr" / "new_0000.nii.gz").write_bytes(b"new")
    if url.startswith(("memory", "s3")):
        RemoteFolder(url).remove("imagesTr/c2_0000.nii.gz")
        upload(raw, url)
    assert mirror(url, disk) == root
    assert not (root / "imagesTr" / "c2_0000.nii.gz").exists()
    for name in ("c0", "c1", "new"):
        path = f"imagesTr/{name}_0000.nii.gz"
        bring(root / path)
        assert (root / path).read_bytes() == (raw / path).read_bytes()


def test_files_stay_within_the_bound_those_in_use_aside(raw, tmp_path, monkeypatch):
    sizes = [f.stat().st_size for f in sorted((raw / "imagesTr").iterdir())]
    root = mirror(f"file://{raw}", LocalDisk(tmp_path / "disk", most_bytes=sizes[0] + sizes[2]))
    images = sorted((root / "imagesTr").iterdir())
    for image in images:
        bring(image)
    assert len(here(root)) == 3
    monkeypatch.setattr(mirrors, "IN_USE_SECONDS", 0.0)
    bring(root / "labelsTr" / "c0.nii.gz")
    assert "c0_0000.nii.gz" not in here(root)
    assert "c2_0000.nii.gz" in here(root)
    assert (root / "dataset.json").stat().st_size > 1
    bring(images[0])
    assert images[0].read_bytes() == (raw / "imagesTr" / images[0].name).read_bytes()


def test_states_are_those_of_the_list_and_outlive_the_copy(raw, url, tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "IN_USE_SECONDS", 0.0)
    disk = LocalDisk(tmp_path / "disk", most_bytes=1)
    root = mirror(url, disk)
    path = root / "imagesTr" / "c0_0000.nii.gz"
    before = states(path)
    assert before is not None
    assert before[0][:2] == (str(path), (raw / "imagesTr" / path.name).stat().st_size)
    bring(path)
    bring(root / "imagesTr" / "c1_0000.nii.gz")
    assert path.name not in here(root)
    mirror(url, disk)
    assert states(path) == before
    assert len(states(root / "imagesTr") or ()) == 3
    assert states(raw / "imagesTr") is None


def test_what_is_written_goes_to_the_store_and_what_is_removed_leaves_it(url, raw, tmp_path):
    if url.startswith("http"):
        pytest.skip("web servers are for reading")
    place = f"{url}/results"
    root = mirror(place, LocalDisk(tmp_path / "disk"), new=True, tables=(".csv",))
    for name in ("a_mask.nii", "a.csv", "b.json"):
        (root / name).write_text(name)
    send([root / name for name in ("a_mask.nii", "a.csv", "b.json", "never.nii")])
    assert [file.path for file in RemoteFolder(place).list()] == ["a.csv", "a_mask.nii", "b.json"]
    root = mirror(place, LocalDisk(tmp_path / "other"), new=True, tables=(".csv",))
    assert (root / "a.csv").read_text() == "a.csv"
    assert (root / "b.json").stat().st_size == 1
    (root / "b.json").unlink()
    send([root / "b.json", raw / "dataset.json"])
    assert [file.path for file in RemoteFolder(place).list()] == ["a.csv", "a_mask.nii"]


def test_many_may_ask_for_one_file_at_once(raw, web, tmp_path):
    root = mirror(f"{web[1]}/{raw.name}", LocalDisk(tmp_path / "disk"))
    path = root / "imagesTr" / "c0_0000.nii.gz"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bring, [path] * 16))
    assert path.read_bytes() == (raw / "imagesTr" / path.name).read_bytes()
    assert not list(tmp_path.glob("disk/mirrors/*/.partial-*"))


def test_a_mirrored_folder_comes_whole_and_other_folders_are_let_be(raw, tmp_path):
    root = mirror(f"file://{raw}", LocalDisk(tmp_path / "disk"))
    bring(root / "imagesTr")
    assert len(here(root)) == 3
    bring(raw / "imagesTr")
    bring(tmp_path / "nothing")


def test_what_is_not_there_is_named(raw, url, tmp_path):
    with pytest.raises(ReadError, match="nowhere"):
        mirror(f"{url}/nowhere", LocalDisk(tmp_path / "disk"))
    root = mirror(url, LocalDisk(tmp_path / "disk"))
    if url.startswith("file"):
        (raw / "imagesTr" / "c1_0000.nii.gz").unlink()
        with pytest.raises(ReadError, match="c1_0000"):
            bring(root / "imagesTr" / "c1_0000.nii.gz")
