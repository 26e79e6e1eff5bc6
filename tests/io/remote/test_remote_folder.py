import uuid

import pytest

from lesionseg.errors import ConfigError, OutputError, ReadError
from lesionseg.io.remote.remote_folder import RemoteFolder, is_url

pytest.importorskip("fsspec")


@pytest.fixture(params=["memory", "file", "s3"])
def folder(request, tmp_path):
    if request.param == "s3":
        return RemoteFolder(f"{request.getfixturevalue('s3')[1]}/set")
    if request.param == "memory":
        return RemoteFolder(f"memory://{uuid.uuid4().hex}/set")
    return RemoteFolder(f"file://{tmp_path}/store")


def test_what_is_put_is_listed_and_read(folder, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    assert folder.list() == []
    (folder / "a").put("b/c.bin", source)
    folder.put("d.bin", source)
    found = folder.list()
    assert [(file.path, file.size) for file in found] == [("a/b/c.bin", 10), ("d.bin", 10)]
    assert found[0].state
    assert folder.look("d.bin").size == 10
    assert folder.read("d.bin") == b"0123456789"
    assert folder.read("a/b/c.bin", 2, 5) == b"234"
    folder.get({"d.bin": tmp_path / "target"})
    assert (tmp_path / "target").read_bytes() == b"0123456789"


def test_only_the_first_creates_a_file_and_it_can_be_removed(folder):
    assert folder.create("claims/a", b"me")
    assert not folder.create("claims/a", b"you")
    assert folder.read("claims/a") == b"me"
    folder.remove("claims/a")
    folder.remove("claims/a")
    assert folder.create("claims/a", b"you")


def test_the_state_changes_with_the_file(folder, tmp_path):
    source = tmp_path / "source"
    states = set()
    for content in (b"one", b"three"):
        source.write_bytes(content)
        folder.put("a", source)
        states.add((folder.look("a").state, folder.look("a").size))
    assert len(states) == 2


def test_a_web_server_is_listed_and_read_even_where_it_knows_no_ranges(web, tmp_path):
    root, url = web
    folder = RemoteFolder(url)
    (root / "images").mkdir()
    (root / "images" / "a.bin").write_bytes(b"0123456789")
    (root / "about.json").write_text("{}")
    assert [file.path for file in folder.list()] == ["about.json", "images/a.bin"]
    assert folder.read("images/a.bin", 3, 6) == b"345"
    seen = folder.look("images/a.bin")
    assert seen.size == 10
    assert seen.state.startswith("Last-Modified")
    folder.get({"images/a.bin": tmp_path / "a"})
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_errors_name_the_url_and_the_way_out(folder, web, tmp_path):
    with pytest.raises(ReadError, match=r"nothing\.bin"):
        folder.read("nothing.bin")
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(OutputError, match="reading only"):
        RemoteFolder(web[1]).put("x", tmp_path / "x")
    with pytest.raises(ConfigError, match="nosuchstore"):
        RemoteFolder("nosuchstore://a").list()


def test_paths_are_no_urls():
    assert [is_url(p) for p in ("http://a", "memory://b", "/a//b", "a:b", "")] == [1, 1, 0, 0, 0]
