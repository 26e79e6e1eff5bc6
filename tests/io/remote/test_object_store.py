"""An S3 server in trouble: no keys, too many requests, lost connections, lists of yesterday."""

import numpy as np
import pytest

from lesionseg.errors import OutputError, ReadError
from lesionseg.io.remote.local_disk import LocalDisk
from lesionseg.io.remote.mirror import bring, mirror
from lesionseg.io.remote.remote_folder import RemoteFolder
from tests.s3_server import cut_short, slow_down

CONTENT = np.random.default_rng(0).bytes(200_000)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source.bin").write_bytes(CONTENT)
    return tmp_path / "source.bin"


@pytest.fixture
def folder(s3, source):
    folder = RemoteFolder(f"{s3[1]}/set")
    folder.put("images/a.bin", source)
    s3[0].heal()
    return folder


def test_only_the_bytes_asked_for_travel(s3, folder):
    assert folder.read("images/a.bin", 1000, 1010) == CONTENT[1000:1010]
    assert [asked.split()[-1] for asked in s3[0].asked if "GET" in asked] == ["bytes=1000-1009"]


def test_a_large_file_goes_up_in_parts_and_shows_once_it_is_whole(
    s3, folder, tmp_path, monkeypatch
):
    import s3fs.core

    part = 5 * 2**20
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: part)
    large = tmp_path / "large.bin"
    large.write_bytes(np.random.default_rng(1).bytes(2 * part + 7))
    s3[0].spoil("partNumber=2", slow_down, 1)
    folder.put("large.bin", large)
    assert sum("partNumber" in asked for asked in s3[0].asked) == 3 + 1
    folder.get({"large.bin": tmp_path / "back.bin"})
    assert (tmp_path / "back.bin").read_bytes() == large.read_bytes()
    s3[0].spoil("partNumber=3", slow_down, 99)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with pytest.raises(OutputError, match="fewer requests"):
        folder.put("other.bin", large)
    assert [file.path for file in folder.list()] == ["images/a.bin", "large.bin"]


def test_missing_keys_and_refused_ones_are_told_apart(s3, folder, monkeypatch, tmp_path):
    import s3fs

    s3[0].spoil("a.bin", _forbidden, 99)
    with pytest.raises(ReadError, match="does not let you"):
        folder.get({"images/a.bin": tmp_path / "a"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    for ask in (folder.list, lambda: folder.read("images/a.bin")):
        with pytest.raises(ReadError, match=r"no key[\s\S]*AWS_ACCESS_KEY_ID"):
            ask()
    with pytest.raises(OutputError, match="no key"):
        folder.create("claim", b"me")


def _forbidden(*_):
    body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    return "403 Forbidden", [("Content-Length", str(len(body)))], [body]


def test_a_busy_store_is_asked_again_and_named_when_it_stays_busy(s3, folder, monkeypatch):
    import s3fs

    s3[0].spoil("set", slow_down, 1)
    assert [file.path for file in folder.list()] == ["images/a.bin"]
    s3[0].spoil("GET", slow_down, 3)
    assert folder.read("images/a.bin") == CONTENT
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3[0].spoil("set", slow_down, 99)
    with pytest.raises(ReadError, match="fewer requests"):
        folder.list()


def test_a_connection_lost_in_a_file_goes_on_or_leaves_nothing(s3, folder, tmp_path, monkeypatch):
    import s3fs

    s3[0].spoil("GET", cut_short, 2)
    folder.get({"images/a.bin": tmp_path / "a"})
    assert (tmp_path / "a").read_bytes() == CONTENT
    root = mirror(folder.url, LocalDisk(tmp_path / "disk"))
    s3[0].spoil("a.bin", cut_short, 99)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    with pytest.raises(ReadError, match=r"a\.bin"):
        bring(root / "images" / "a.bin")
    assert (root / "images" / "a.bin").stat().st_size == 1  # the placeholder
    s3[0].heal()
    bring(root / "images" / "a.bin")
    assert (root / "images" / "a.bin").read_bytes() == CONTENT
    assert not list(tmp_path.rglob(".partial-*"))


def test_lists_that_lag_behind_do_no_harm(s3, folder, source, tmp_path):
    disk = LocalDisk(tmp_path / "disk")
    root = mirror(folder.url, disk)
    s3[0].lists_are_old = True
    source.write_bytes(CONTENT[:-5])
    folder.put("images/new.bin", source)
    assert mirror(folder.url, disk) == root
    assert not (root / "images" / "new.bin").exists()
    assert folder.read("images/new.bin") == CONTENT[:-5]  # it is there for who knows its name
    folder.put("images/a.bin", source)
    with pytest.raises(ReadError, match="changed while it was copied"):
        bring(root / "images" / "a.bin")
    folder.remove("images/a.bin")
    with pytest.raises(ReadError, match="no such file"):
        bring(root / "images" / "a.bin")
    s3[0].lists_are_old = False
    mirror(folder.url, disk)
    assert [path.name for path in (root / "images").iterdir()] == ["new.bin"]
