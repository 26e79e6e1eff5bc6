"""Models at an address: a web server, a store with the interface of the Hugging Face Hub."""

import json
import logging
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from lesionseg.cli import run
from lesionseg.cli.paths import with_local_models
from lesionseg.config import COMMANDS, InfoConfig, TrainConfig
from lesionseg.errors import BundleError, ConfigError, OutputError, ReadError
from lesionseg.inference.bundle import (
    bundle_digest,
    bundle_plan,
    bundle_selection,
    read_bundle,
    write_bundle,
)
from lesionseg.inference.predictor import Predictor
from lesionseg.io.bundle_folder import resolve_bundle
from lesionseg.io.files import digest_of
from lesionseg.io.model_address import local_model
from lesionseg.io.remote import download
from lesionseg.models.build import build_network
from lesionseg.pipeline.info import info
from tests.inference.nnunet.small_models import SmallModel
from tests.io.hub_store import HubStore, make_certificate, running_server, web_folder

pytest.importorskip("huggingface_hub")

COMMIT = "0" * 40
DIGEST = "0" * 64


def write_zip(path, folder, prefix="", mode="w", **extra):
    """Write the files of a folder, and extra texts, into a zip."""
    with zipfile.ZipFile(path, mode, zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"{prefix}{file.relative_to(folder)}")
        for name, text in extra.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lesionseg" / "models"


@pytest.fixture
def folder(tmp_path, plan):
    write_bundle(tmp_path / "made" / "bundle", build_network(plan), plan, "# card\n")
    return tmp_path / "made" / "bundle"


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def zipped(site, folder):
    """Write the bundle as `model.zip` into the folder `site`."""
    return write_zip(site / "model.zip", folder)


@pytest.fixture
def web(site):
    """Serve the folder `site` by http."""
    with running_server(web_folder(site)) as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of the server")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    make_certificate(path)
    return path


@pytest.fixture
def secure(site, certificate, monkeypatch):
    """Serve the folder `site` by https."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with running_server(web_folder(site), certificate) as server:
        yield server


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Run a store of repositories, which the package of the hub uses."""
    store = HubStore()
    with running_server(store.handler()) as server:
        set_hub(monkeypatch, server.url, tmp_path / "hub")
        yield store


def set_hub(monkeypatch, url, cache):
    # the package reads the variables HF_ENDPOINT and HF_HUB_CACHE only when it is imported
    from huggingface_hub import HfFileSystem, constants

    template = "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{template}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def on_hub(hub, folder):
    """Commit the bundle as the model `user/model`. Return the commit."""
    return hub.commit_folder("models/user/model", folder)


def pinned(server, path):
    return f"{server.url}/{path.name}#sha256={digest_of(path)}"


@pytest.mark.parametrize("prefix", ["", "bundle/", "runs/mine/bundle/"])
def test_bundle_in_a_zip_is_read_from_disk_and_from_a_web_server(web, site, folder, prefix, cache):
    path = write_zip(site / "model.zip", folder, prefix, **{"config.yaml": "command: train"})
    expected = bundle_digest(folder)
    assert bundle_digest(path) == expected
    address = pinned(web, path)
    assert bundle_digest(address) == expected
    assert bundle_plan(address) == bundle_plan(folder)
    assert bundle_selection(address) == bundle_selection(folder)
    web.requests.clear()
    assert len(read_bundle(address).networks) == 1
    assert not web.requests
    assert local_model(address).parent == cache / digest_of(path)
    assert Predictor([address, path], device="cpu").selection.n_members == 2


def test_nnunet_model_in_a_zip_of_a_web_server_is_not_unpacked(web, site, tmp_path, cache):
    model = SmallModel().write(tmp_path / "results")
    path = site / "two.zip"
    for name in ("Dataset001_X", "Dataset002_Y"):
        write_zip(path, model, f"{name}/{model.name}/", mode="a")
    digest = digest_of(path)
    with pytest.raises(BundleError, match="2 models"):
        local_model(f"{web.url}/two.zip#sha256={digest}")
    address = f"{web.url}/two.zip/Dataset001_X/{model.name}#sha256={digest.upper()}"
    assert bundle_digest(address) == bundle_digest(model)
    assert not [*cache.glob("*/*/")]


def test_checkpoint_of_a_web_server_keeps_its_suffix(web, site):
    path = site / "checkpoint_final.pth"
    path.write_bytes(b"weights")
    local = local_model(pinned(web, path))
    assert (local.suffix, local.read_bytes()) == (".pth", b"weights")


def test_pinned_model_is_used_without_network_and_checked_at_each_use(site, folder, cache, zipped):
    with running_server(web_folder(site)) as server:
        address = pinned(server, zipped)
        local_model(address)
    assert bundle_digest(address) == bundle_digest(folder)
    cached = cache / digest_of(zipped) / "model.zip"
    cached.write_bytes(b"changed")
    with pytest.raises(BundleError, match="damaged"):
        local_model(address)
    cached.unlink()
    with pytest.raises(ReadError, match="connection"):
        local_model(address)


def test_unpinned_model_is_downloaded_at_each_use(secure, folder, caplog, zipped):
    caplog.set_level(logging.INFO)
    address = f"{secure.url}/model.zip?download=1"
    first = local_model(address)
    assert f"#sha256={digest_of(zipped)}" in caplog.text
    write_zip(zipped, folder, "other/")
    assert local_model(address) != first
    assert bundle_digest(address) == bundle_digest(folder)
    assert first.is_dir()  # a process may be using it


def test_redirects_are_followed_but_not_to_an_unsafe_url(secure, web, zipped):
    assert local_model(f"{secure.url}/to/{secure.url}/model.zip")
    unsafe = f"{secure.url}/to/{web.url}/model.zip"
    with pytest.raises(ReadError, match="unsafe http://"):
        local_model(unsafe)
    assert local_model(f"{unsafe}#sha256={digest_of(zipped)}")
    for url in (f"file://{zipped}", "ftp://127.0.0.1/model.zip"):
        with pytest.raises(ReadError, match=r"not allowed|unsafe"):
            local_model(f"{secure.url}/to/{url}#sha256={DIGEST}")


@pytest.mark.parametrize(
    ("route", "match"),
    [
        ("cut/", "ended after"),
        ("as/chunked/", "size is not stated: download it yourself"),
        ("as/Content-Length:100,chunked/", "size is not stated"),
        ("as/Content-Length:-1/", "size is not stated"),
    ],
)
def test_incomplete_download_is_an_error_and_leaves_nothing(web, cache, route, match, zipped):
    with pytest.raises(ReadError, match=match):
        local_model(f"{web.url}/{route}model.zip#sha256={digest_of(zipped)}")
    assert not [*cache.iterdir()]


def test_wrong_download_is_not_kept(web, cache, zipped):
    with pytest.raises(BundleError, match="Check the address") as caught:
        local_model(f"{web.url}/model.zip#sha256={DIGEST}")
    assert "delete" not in str(caught.value).lower()
    assert not [*cache.iterdir()]


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json", "selection.json"])
@pytest.mark.parametrize("at_address", [True, False])
def test_changed_copy_of_an_unpacked_file_is_refused(web, site, folder, cache, name, at_address):
    path = write_zip(site / "model.zip", folder, "inner/")
    address = pinned(web, path) if at_address else path
    digest = bundle_digest(address)
    (copy,) = cache.rglob(name)
    content = bytearray(copy.read_bytes())
    content[-20] ^= 1
    copy.write_bytes(content)
    for read in (read_bundle, bundle_plan, bundle_digest):
        with pytest.raises(BundleError, match=f"{name}.*changed or damaged. Delete"):
            read(address)
    copy.unlink()
    assert bundle_digest(address) == digest


def test_file_that_does_not_fit_on_the_disk_is_an_error(web, cache, monkeypatch, zipped):
    monkeypatch.setattr("lesionseg.io.model_address._MAX_BYTES", 1000)
    with pytest.raises(ReadError, match="too large"):
        local_model(pinned(web, zipped))
    monkeypatch.setattr("lesionseg.io.model_address._MAX_BYTES", 2**36)
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("lesionseg.io.model_address.shutil.disk_usage", lambda _: free)
    with pytest.raises(OutputError, match="Free space"):
        local_model(pinned(web, zipped))
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("address", "kind", "word"),
    [
        ("WEB/model.zip", ConfigError, "https://"),
        ("WEB/model.zip#sha256=12", ConfigError, "64 hexadecimal"),
        ("WEB/model.zip#sha=12", ConfigError, "64 hexadecimal"),
        ("WEB/model.zip#sha256", ConfigError, "64 hexadecimal"),
        (f"WEB/model.zip#sha256={DIGEST}", BundleError, "server's file has the SHA-256"),
        (f"WEB/to/WEB/to/file://x#sha256={DIGEST}", ReadError, "not allowed|unsafe"),
        (f"WEB/loop#sha256={DIGEST}", ReadError, "infinite loop. The last 30x"),
        (f"WEB/nosuch.zip#sha256={DIGEST}", ReadError, "404"),
        ("WEB/page.html#sha256=PAGE", ReadError, "not a zip"),
        ("WEB/texts.zip#sha256=TEXTS", BundleError, "0 bundles"),
        ("WEB/outside.zip#sha256=OUTSIDE", BundleError, "outside"),
        (f"http://127.0.0.1:1/model.zip#sha256={DIGEST}", ReadError, "connection"),
        (f"http://bad host/model.zip#sha256={DIGEST}", ReadError, "address"),
        ("s3://bucket/model", ConfigError, "s3://"),
        ("hf://model", ConfigError, "hf://user/model"),
        ("hf://datasets/user/texts", BundleError, "not a bundle"),
        ("hf://user/nosuch", ReadError, "Repository Not Found.*hf auth login"),
        ("hf://user/model@nosuch", ReadError, "Revision Not Found"),
        (f"hf://user/model@{COMMIT}", ReadError, "Revision Not Found"),
        ("hf://user/gated", ReadError, "gated"),
        ("hf://user/texts", BundleError, "not a bundle"),
        ("hf://user/model/nosuch", BundleError, "does not exist"),
        (f"hf://user/model#sha256={DIGEST}", BundleError, "by its commit"),
        (f"hf://user/zips/model.zip#sha256={DIGEST}", BundleError, "SHA-256"),
    ],
)
def test_wrong_address_is_an_error_that_names_it(
    web, site, hub, folder, address, kind, word, zipped, on_hub
):
    (site / "page.html").write_text("<!doctype html>")
    write_zip(site / "texts.zip", site, **{"a.txt": "text"})
    write_zip(site / "outside.zip", folder, **{"../weights.safetensors": "text"})
    hub.commit("models/user/texts", {"README.md": b"text"})
    hub.commit("datasets/user/texts", {"README.md": b"text"})
    hub.commit("models/user/zips", {"model.zip": zipped.read_bytes()})
    hub.commit("models/user/gated", {"README.md": b"text"})
    hub.gated.add("models/user/gated")
    for name in ("page.html", "texts.zip", "outside.zip"):
        digest = digest_of(site / name)
        address = address.replace(f"sha256={Path(name).stem.upper()}", f"sha256={digest}")
    address = address.replace("WEB", web.url)
    with pytest.raises(kind, match=word) as caught:
        local_model(address)
    assert str(caught.value).startswith(address.partition("#")[0])
    assert "\n" not in str(caught.value)


def test_model_of_the_hub_follows_its_branch_and_a_commit_stays(hub, folder, plan, caplog):
    caplog.set_level(logging.INFO)
    first = bundle_digest(folder)
    commit = hub.commit_folder("models/user/model", folder)
    assert bundle_digest("hf://user/model") == first
    assert f"hf://user/model@{commit}" in caplog.text
    write_bundle(folder, build_network(plan, seed=5), plan, "# card\n")
    hub.commit_folder("models/user/model", folder)
    assert bundle_digest("hf://user/model") == bundle_digest(folder) != first
    assert bundle_digest(f"hf://user/model@{commit}") == first
    assert Predictor(f"hf://user/model@{commit}", device="cpu").plan == plan


def test_model_of_the_hub_is_read_from_a_folder_a_run_or_a_zip(hub, folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    commit = hub.commit_folder("models/user/run", folder.parent)
    path = write_zip(tmp_path / "model.zip", folder, "inner/")
    hub.commit("models/user/zips", {"a/model.zip": path.read_bytes(), "other.zip": b"large"})
    in_zip = f"hf://user/zips/a/model.zip/inner#sha256={digest_of(path)}"
    for address in ("hf://user/run", "hf://user/run@main/bundle", in_zip):
        assert bundle_digest(address) == bundle_digest(folder)
    assert f"hf://user/run@{commit}/bundle pins it" in caplog.text
    assert "other.zip" not in hub.downloads


def test_nnunet_model_of_the_hub_is_read_from_its_folder_or_a_fold(hub, tmp_path):
    model = SmallModel().write(tmp_path / "results")
    hub.commit_folder("models/user/nnunet", tmp_path / "results")
    address = f"hf://user/nnunet/{model.relative_to(tmp_path / 'results').as_posix()}"
    for fold in ("", "/fold_0"):
        assert bundle_digest(f"{address}{fold}") == bundle_digest(f"{model}{fold}")
    weights = "fold_0/checkpoint_final.pth"
    assert local_model(f"{address}/{weights}").read_bytes() == (model / weights).read_bytes()
    (model / "fold_9").mkdir()
    with pytest.raises(BundleError, match="fold_9 has no checkpoint"):
        bundle_digest(model / "fold_9")


def test_only_the_files_of_a_model_are_downloaded_from_the_hub(hub, folder):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = {"model.py": b"1/0", "pytorch_model.bin": b"\x80", "last.ckpt": b"\x80"}
    hub.commit("models/user/model", files | code)
    local_model("hf://user/model")
    assert sorted(hub.downloads) == sorted(files)


def test_commit_of_the_hub_is_used_without_network_if_it_is_complete(tmp_path, folder, monkeypatch):
    store = HubStore()
    commit = store.commit_folder("models/user/model", folder)
    address = f"hf://user/model@{commit}"
    with running_server(store.handler()) as server:
        set_hub(monkeypatch, server.url, tmp_path / "hub")
        local = local_model(address)
    assert local_model(address) == local
    (local / "weights.safetensors").unlink()  # as after an interrupted download
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # without repeated tries
    with pytest.raises(ReadError, match="connection"):
        local_model(address)


def test_cache_of_the_hub_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, on_hub):
    (tmp_path / "file").write_text("text")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(OutputError, match="cannot be written"):
        local_model("hf://user/model")


def test_missing_package_of_the_hub_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"huggingface_hub.*pip install"):
        local_model("hf://user/model")


def test_zip_of_several_bundles_needs_the_name_of_one(folder, tmp_path):
    path = tmp_path / "folds.zip"
    for prefix in ("fold_0/bundle/", "fold_1/bundle/"):
        write_zip(path, folder, prefix, mode="a")
    with pytest.raises(BundleError, match=r"2 bundles.*fold_1"):
        resolve_bundle(path)
    assert bundle_digest(path / "fold_1") == bundle_digest(folder)
    with pytest.raises(BundleError, match="0 bundles"):
        resolve_bundle(path / "fold_2")
    write_zip(path, folder, "bundle/", mode="a")
    assert bundle_digest(path) == bundle_digest(folder)  # that of all folds


def test_zip_bomb_is_an_error_before_memory_is_allocated(folder, tmp_path, cache):
    path = write_zip(tmp_path / "bomb.zip", folder)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("weights.safetensors").file_size
    claim = size.to_bytes(4, "little")
    path.write_bytes(content.replace(claim, (2**31).to_bytes(4, "little")))
    with pytest.raises(BundleError, match="bytes"):
        resolve_bundle(path)
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [("plan.json", 2**26 + 1), ("selection.json", 2**26 + 1), ("weights.safetensors", 2**25)],
)
def test_zip_bomb_is_not_unpacked(folder, tmp_path, cache, name, n_bytes):
    (folder / name).write_bytes(bytes(n_bytes))
    path = write_zip(tmp_path / "bomb.zip", folder)
    assert path.stat().st_size < 2**20
    with pytest.raises(BundleError, match=f"{name}: the file has {n_bytes} bytes"):
        bundle_plan(path)
    assert not list(cache.rglob(name))


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "fold_0/checkpoint_final.pth"])
def test_zip_bomb_of_an_nnunet_model_is_an_error(tmp_path, name):
    model = SmallModel().write(tmp_path / "results")
    (model / name).write_bytes(b" " * (2**26 + 1))
    path = write_zip(tmp_path / "bomb.zip", model, f"{model.name}/")
    for place in (path, *([model] if name.endswith("json") else [])):
        with pytest.raises(BundleError, match=f"{name}: the file has {2**26 + 1} bytes"):
            read_bundle(place)


OTHER_SETTINGS = {
    "predict": {"input": "scans", "output": "out"},
    "export": {"output": "out"},
    "follow": {"visits": "v.csv"},
    "serve": {},
}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name in OTHER_SETTINGS])
def test_commands_use_the_local_path_of_a_model(folder, command, on_hub):
    cfg = COMMANDS[command].of(bundle=["hf://user/model", "local"], **OTHER_SETTINGS[command])
    local = with_local_models(cfg)
    first, second = local.bundle
    assert second == "local"
    assert bundle_digest(first) == bundle_digest(folder)
    assert local.model_copy(update={"bundle": cfg.bundle}) == cfg


def test_repository_of_a_pretrained_encoder_gives_its_checkpoint(hub):
    files = {"adaptation_plan.json": b"{}", "checkpoint_final.pth": b"weights", "README.md": b""}
    hub.commit("models/user/pretrained", files)
    local = local_model("hf://user/pretrained")
    assert (local.name, local.read_bytes()) == ("checkpoint_final.pth", b"weights")


def test_info_reads_a_model_of_the_hub(folder, capsys, on_hub):
    assert run("info", ["bundle=hf://user/model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["path"] == "hf://user/model"
    assert found["model"]["digest"] == bundle_digest(folder)
    assert " bundle=hf://user/model " in found["next"]
    assert run("info", ["bundle=hf://user/model"]) == 0
    assert "Model:   hf://user/model, digest" in capsys.readouterr().out
    assert info(InfoConfig.of(bundle="hf://user/model")).model.digest == bundle_digest(folder)


def test_training_starts_from_the_local_path_of_a_model(folder, on_hub):
    cfg = TrainConfig.of(data={"root": "data"}, model={"init_from": "hf://user/model"})
    local = with_local_models(cfg)
    assert bundle_digest(local.model.init_from) == bundle_digest(folder)
    model = {**cfg.to_plain()["model"], "init_from": local.model.init_from}
    assert local.to_plain() == {**cfg.to_plain(), "model": model}


def test_data_of_the_hub_are_downloaded_and_kept(hub):
    hub.commit("datasets/user/set", {"a/one.nii": b"1", "a/b/two.csv": b"2", "three.csv": b"3"})
    copy = download("hf://datasets/user/set/a")
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*.*")}
    assert found == {"one.nii", "b/two.csv"}
    hub.downloads.clear()
    hub.commit("datasets/user/set", {"a/one.nii": b"1", "a/b/two.csv": b"new"})
    assert download("hf://datasets/user/set/a") == copy
    assert hub.downloads == ["a/b/two.csv"]
    assert (copy / "b" / "two.csv").read_text() == "new"
    with pytest.raises(ReadError, match="no files"):
        download("hf://datasets/user/nosuch")
