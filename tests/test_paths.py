"""Mistyped paths are reported for every command and key before heavy packages are imported."""

import errno
from unittest.mock import Mock

import pytest

import lesionseg
import lesionseg.cli.command as command_module
from lesionseg.cli.paths import check_paths
from lesionseg.config import COMMANDS, PathKind, Settings, settings_of
from lesionseg.errors import ConfigError, LesionsegError
from tests.commands import PATHS, arguments_of, python


def path_keys(kind=Settings, prefix=""):
    """Return every key of a path in a command's settings, and the required kind of the path."""
    found = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found |= path_keys(field.annotation, f"{prefix}{name}.")
        for mark in field.metadata:
            if isinstance(mark, PathKind):
                found[f"{prefix}{name}"] = mark
    return found


KEYS = [(command, key) for command in COMMANDS for key in path_keys(COMMANDS[command])]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Change to a folder with a data folder, a bundle, masks, scores and a file."""
    files = ("masks/a.nii.gz", "scores/scores.json", "table.csv")
    for name in ("data/manifest.csv", "model/weights.safetensors", "model/plan.json", *files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(command, key, value):
    """Return the error for another value of one of a command's paths.

    `follow` reads visits only without `before` and `after`, `export` masks only for a bundle, and
    `report` predictions only without scores.
    """
    settings = {**PATHS[command], key: value}
    if command == "follow" and key in ("visits", "bundle", "predictions"):
        settings = {"visits": "table.csv", "output": "out"}
        settings |= {"predictions": "masks"} if key == "visits" else {}
        settings[key] = value
    if (command, key) == ("export", "reference"):
        settings["format"] = "bundle"
    if (command, key) == ("report", "predictions"):
        del settings["scores"]
    with pytest.raises(LesionsegError) as caught:
        check_paths(settings_of(command, settings))
    return caught.value


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("command", "key"), KEYS)
def test_mistyped_path_is_named_with_its_key(command, key):
    wrong, near = ("dada", "data") if key == "data.root" else ("masls", "masks")
    kind = path_keys(COMMANDS[command])[key]
    if kind in (PathKind.OUTPUT, PathKind.OUTPUT_OR_URL):  # may be missing, but not a file
        wrong, near = "table.csv", "Name"
    error = error_of(command, key, wrong)
    assert not isinstance(error, ConfigError)  # the settings are right, but not the files
    assert f"{key}={wrong}" in str(error)
    assert near in str(error)


@pytest.mark.parametrize(
    ("command", "key", "wrong", "words"),
    [
        ("train", "data.root", "empty", "no known dataset layout"),
        ("train", "data.root", "table.csv", "is a file"),
        ("train", "data.root", ".", "Name one of them"),
        ("train", "data.root", "gone/deep/data", "no folder 'gone'"),
        ("train", "data.root", "table.csv/data", "no folder 'table.csv'"),
        ("predict", "input", "masks/*.png", "no file matches this pattern"),
        ("predict", "input", "gone/series=3", "there is no such file"),
        ("predict", "input", "masks/series=3", "model"),  # the model is empty
        ("predict", "bundle", "masks", "not a bundle"),
        ("predict", "bundle", "[model,masls]", "bundle=masls"),
        ("evaluate", "prediction", "empty", "the folder is empty"),
        ("evaluate", "adjudication", "masks", "Name a file"),
        ("report", "scores", "masks", "Run evaluate first"),
        # paths that the system refuses
        ("predict", "bundle", "a" * 300, f"Error: bundle={'a' * 300}: "),
        ("evaluate", "output", "a" * 300, f"Error: output={'a' * 300}: "),
        # names of files
        ("predict", "output", "res.nii.gz", "output=res.nii.gz is the name of a file"),
        ("follow", "output", "res.csv", "output=res.csv is the name of a file"),
    ],
)
def test_path_to_another_kind_of_file_or_folder_is_named(
    run_command, command, key, wrong, words, place
):
    (place / "empty").mkdir()
    before = {*place.iterdir()}
    assert words in run_command(command, arguments_of(command, **{key: wrong}), 1).err
    assert {*place.iterdir()} == before


def test_no_heavy_package_is_imported_before_paths_are_checked(place):
    keys = {
        "train": "data.splits",
        "predict": "bundle",
        "evaluate": "prediction",
        "follow": "before",
        "report": "scores",
        "export": "bundle",
        "serve": "bundle",
    }
    calls = [(command, arguments_of(command, **{key: "dada"})) for command, key in keys.items()]
    calls.append(("train", ["data.root=dada"]))
    calls.append(("predict", arguments_of("predict", input="masks/*.png")))
    (place / "dada").mkdir()
    code = f"from lesionseg.cli import run; import sys; print([run(*c) for c in {calls!r}])"
    done = python("-c", f"{code}; print(*sys.modules)")
    statuses, loaded = done.stdout.splitlines()[-2:]
    assert statuses == str([1] * len(calls))
    assert not {"torch", "monai", "SimpleITK", "pytorch_lightning", "numba"} & {*loaded.split()}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("command", "key"), KEYS)
def test_empty_path_is_not_the_current_folder(command, key):
    error = error_of(command, key, "")
    assert isinstance(error, ConfigError)
    assert f"{key}= is empty" in str(error)


def test_file_without_permission_is_a_sentence(run_command, place, monkeypatch):
    refusal = PermissionError(errno.EACCES, "Permission denied", "out/predictions.log")
    monkeypatch.setattr(command_module, "run_recipe", Mock(side_effect=refusal))
    printed = run_command("predict", arguments_of("predict"), 1).err
    assert "Error: out/predictions.log: Permission denied." in printed


def test_empty_path_among_several_bundles_is_an_error(place):
    with pytest.raises(ConfigError, match="bundle= is empty"):
        lesionseg.predict(["model", ""], "masks", "out")


# the keys whose files no command downloads or uploads
LOCAL_KEYS = [
    (command, key)
    for command, key in KEYS
    if key not in ("data.root", "input") and (command, key) != ("predict", "output")
]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("command", "key"), LOCAL_KEYS)
def test_url_is_an_error_unless_the_command_downloads_or_uploads_it(command, key):
    url = "memory://bucket/x"
    error = error_of(command, key, url)
    assert isinstance(error, ConfigError)
    assert f"{key}={url}: this cannot be a URL" in str(error)


def test_mistyped_input_is_an_error_before_a_model_is_downloaded(run_command, place):
    model = "https://127.0.0.1:1/model.zip"
    error = run_command("predict", arguments_of("predict", bundle=model, input="nowhere"), 1).err
    assert "input=nowhere" in error
    assert "127.0.0.1" not in error
