"""Folders at a URL: download, changes at the store, and upload of results."""

import errno
import os
from types import SimpleNamespace
from unittest import mock

import pytest

from lesionseg.errors import ConfigError, OutputError, ReadError
from lesionseg.io.remote import download, upload
from tests.io.hub_store import running_server, web_folder

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_texts(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


def test_repeated_download_updates_only_changed_files():
    store = fsspec.filesystem("memory")
    store.pipe({"/set/a.nii": b"one", "/set/deep/b.csv": b"two"})
    copy = download("memory://set")
    assert copy.name == "set"
    assert read_texts(copy) == {"a.nii": "one", "deep/b.csv": "two"}
    untouched = (copy / "a.nii").stat().st_mtime_ns
    store.rm("/set/deep/b.csv")
    store.pipe("/set/c.nii", b"three")
    assert download("memory://set") == copy
    assert read_texts(copy) == {"a.nii": "one", "c.nii": "three"}
    assert (copy / "a.nii").stat().st_mtime_ns == untouched


def test_local_path_is_not_copied(tmp_path):
    assert download(str(tmp_path)) == tmp_path


def test_new_changed_and_removed_results_are_uploaded(tmp_path, monkeypatch):
    store = fsspec.filesystem("memory")
    copy = download("memory://results", new=True)
    assert read_texts(copy) == {}
    (copy / "deep").mkdir()
    mask = copy / "deep" / "a_mask.nii.gz"
    mask.write_text("mask")
    upload([mask], copy, "memory://results")
    assert store.cat("/results/deep/a_mask.nii.gz") == b"mask"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    again = download("memory://results")
    assert read_texts(again) == {"deep/a_mask.nii.gz": "mask"}
    mask = again / "deep" / "a_mask.nii.gz"
    mask.unlink()
    upload([mask], again, "memory://results")
    assert not store.exists("/results/deep/a_mask.nii.gz")


def test_uploaded_results_that_the_store_lost_are_removed_locally(tmp_path):
    """Otherwise `predict` would keep them as finished, and never upload them again."""
    url = f"memory://{tmp_path.name}"
    store = fsspec.filesystem("memory")
    copy = download(url, new=True)
    for name in ("a_mask.nii.gz", "b_mask.nii.gz", "c_mask.nii.gz"):
        (copy / name).write_text(name)
    upload([copy / "a_mask.nii.gz", copy / "b_mask.nii.gz"], copy, url)
    store.rm(f"/{tmp_path.name}/a_mask.nii.gz")
    download(url, new=True)
    # a file that was never uploaded may be that of a process that is about to upload it
    assert {file.name for file in copy.iterdir()} == {"b_mask.nii.gz", "c_mask.nii.gz"}


@pytest.fixture
def web(tmp_path):
    """Serve `tmp_path/web` by HTTP, which lists the names of files without sizes or dates."""
    pytest.importorskip("aiohttp")
    (tmp_path / "web").mkdir()
    with running_server(web_folder(tmp_path / "web")) as server:
        yield tmp_path / "web", server.url


@pytest.mark.parametrize("has_dates", [True, False])
def test_changed_files_of_a_web_server_are_downloaded_again(web, monkeypatch, has_dates):
    folder, url = web
    if not has_dates:
        monkeypatch.setattr("lesionseg.io.remote._KEYS", ())
    times = []
    for day, text in enumerate(("one", "two", "two")):
        (folder / "a.nii").write_text(text)
        os.utime(folder / "a.nii", (1e9, 1e9 + 86400 * min(day, 1)))
        copy = download(url)
        assert read_texts(copy) == {"a.nii": text}
        times.append((copy / "a.nii").stat().st_mtime_ns)
    assert times[0] != times[1] == times[2]


def test_encoded_names_of_a_web_server_are_decoded(web):
    folder, url = web
    (folder / "sub dir").mkdir()
    texts = {"P 1.nii.gz": "one", "Größe#2.nii": "two", "50%20.nii": "three", "sub dir/a.nii": "4"}
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    assert read_texts(download(url)) == texts
    (folder / "P 1.nii.gz").write_text("changed")
    os.utime(folder / "P 1.nii.gz", (1e9, 1e9))
    assert read_texts(download(url)) == {**texts, "P 1.nii.gz": "changed"}


@pytest.mark.parametrize("name", ["..%2Fa.nii", "..%5Ca.nii", "a%00.nii", "%2E%2E/a.nii"])
def test_encoded_name_that_leads_out_of_the_folder_is_an_error(monkeypatch, name):
    url = "http://localhost"
    found = {f"{url}/{name}": {"size": 1, "ETag": "x"}}
    system = SimpleNamespace(find=lambda *_, **__: found)
    monkeypatch.setattr("lesionseg.io.remote._open_file_system", lambda place: (system, place))
    with pytest.raises(ReadError, match=r"cannot be downloaded.*(contains a slash|leads out)"):
        download(url)


def test_error_names_a_missing_or_unknown_url():
    with pytest.raises(ReadError, match="memory://nothing"):
        download("memory://nothing")
    with pytest.raises(ConfigError, match="nosuch://x"):
        download("nosuch://x")


@pytest.mark.parametrize(
    ("url", "message", "advised"),
    [
        ("hf://datasets/x", "Install huggingface_hub to access HfFileSystem", "pip install"),
        ("gs://bucket/x", "Please install gcsfs to access Google Storage", "gcsfs"),
        ("hf://datasets/x", "No module named 'fsspec'", "pip install"),
    ],
)
def test_missing_package_of_a_store_is_named(monkeypatch, url, message, advised):
    monkeypatch.setattr("fsspec.core.url_to_fs", mock.Mock(side_effect=ImportError(message)))
    with pytest.raises(ConfigError, match=advised) as caught:
        download(url)
    assert ("pip install" in str(caught.value)) == ("pip" in advised)


def test_store_that_cannot_be_opened_is_an_error_with_its_url(tmp_path, monkeypatch):
    """Stores such as FTP connect when they are opened, and raise errors of their own packages."""
    refuse = mock.Mock(side_effect=ConnectionRefusedError("connection refused"))
    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(ReadError, match=r"^ftp://host/x: .*connection refused"):
        download("ftp://host/x")
    with pytest.raises(OutputError, match=r"^ftp://host/x: .*connection refused"):
        upload([tmp_path / "a.nii"], tmp_path, "ftp://host/x")


def test_full_disk_is_an_error_of_the_cache(monkeypatch):
    store = fsspec.filesystem("memory")
    store.pipe("/full/a.nii", b"one")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(type(store), "get", mock.Mock(side_effect=full))
    with pytest.raises(OutputError, match=r"No space left on device\. Free space .*cache"):
        download("memory://full")


def test_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        download("memory://set")
