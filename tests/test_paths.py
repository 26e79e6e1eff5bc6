"""Mistyped paths are reported for every command and key before heavy packages are imported."""

import errno

import pytest

import lesionseg
import lesionseg.cli.command as command_module
from lesionseg.cli import run
from lesionseg.config import COMMANDS, PathKind, Settings
from lesionseg.errors import ConfigError
from tests.commands import python

MASKS = {"reference": "masks", "prediction": "masks", "output": "out"}
VISITS = {"before": "masks", "after": "masks", "output": "out"}
GIVEN = {
    "train": {"data.root": "data", "run_dir": "run"},
    "prepare": {"data.root": "data", "run_dir": "run"},
    "tune": {"data.root": "data", "run_dir": "run"},
    "predict": {"bundle": "model", "input": "masks", "output": "out"},
    "evaluate": MASKS,
    "follow": VISITS,
    "report": {"scores": "scores", "output": "out"},
    "export": {"bundle": "model", "output": "out"},
    "serve": {"bundle": "model"},
    "info": {"bundle": "model"},
}


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
    for name in ("data/manifest.csv", "model/weights.safetensors", "model/plan.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("masks/a.nii.gz", "scores/scores.json", "table.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments_of(command, **changed):
    return [f"{key}={value}" for key, value in {**GIVEN[command], **changed}.items()]


def test_path_keys_contain_all_paths_of_train_and_predict():
    assert {(c, k) for c, k in KEYS if c in ("train", "predict")} >= {
        ("train", "data.root"),
        ("train", "data.splits"),
        ("train", "model.init_from"),
        ("train", "report.study"),
        ("train", "run_dir"),
        ("predict", "bundle"),
        ("predict", "input"),
        ("predict", "output"),
        ("predict", "zones"),
    }


def arguments_with(command, key, value):
    """Return the arguments of a command with another value of one of its paths.

    `follow` reads visits only without `before` and `after`, and `export` masks only for a bundle.
    """
    changed = {}
    if command == "follow" and key in ("visits", "bundle", "predictions"):
        changed = {"before": "null", "after": "null", "visits": "table.csv"}
        if key == "visits":
            changed["predictions"] = "masks"
    if (command, key) == ("export", "reference"):
        changed["format"] = "bundle"
    return arguments_of(command, **{**changed, key: value})


@pytest.mark.parametrize(("command", "key"), KEYS)
def test_mistyped_path_is_named_with_its_key(command, key, place, capsys):
    wrong = "masls" if key != "data.root" else "dada"
    kind = path_keys(COMMANDS[command])[key]
    if kind in (PathKind.OUTPUT, PathKind.OUTPUT_OR_URL):  # may be missing, but not a file
        wrong = "table.csv"
    assert run(command, arguments_with(command, key, wrong)) == 1
    printed = capsys.readouterr().err
    assert f"{key}={wrong}" in printed
    near = {"masls": "masks", "dada": "data", "table.csv": "Name"}[wrong]
    assert near in printed
    assert not (place / "run").exists()
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("command", "key", "wrong", "words"),
    [
        ("train", "data.root", "empty", "no known dataset layout"),
        ("train", "data.root", "table.csv", "is a file"),
        ("train", "data.root", "masks", "no known dataset layout"),
        ("train", "data.root", ".", "Name one of them"),
        ("train", "data.root", "gone/deep/data", "gone does not"),
        ("predict", "input", "masks/*.png", "no file matches this pattern"),
        ("predict", "bundle", "masks", "not a bundle"),
        ("predict", "bundle", "[model,masls]", "bundle=masls"),
        ("evaluate", "prediction", "empty", "the folder is empty"),
        ("evaluate", "adjudication", "masks", "Name a file"),
        ("report", "scores", "masks", "Run evaluate first"),
    ],
)
def test_path_to_another_kind_of_file_or_folder_is_named(command, key, wrong, words, place, capsys):
    (place / "empty").mkdir()
    assert run(command, arguments_of(command, **{key: wrong})) == 1
    assert words in capsys.readouterr().err


def test_series_in_a_folder_is_an_input(place, capsys):
    assert run("predict", arguments_of("predict", input="masks/series=3")) == 1
    assert "model" in capsys.readouterr().err  # which is empty
    assert run("predict", arguments_of("predict", input="gone/series=3")) == 1
    assert "input=gone/series=3: the input does not exist" in capsys.readouterr().err


def test_no_heavy_package_is_imported_before_paths_are_checked(place):
    keys = ["train data.root", "train data.splits", "predict bundle", "evaluate prediction"]
    keys += ["follow before", "report scores", "export bundle", "serve bundle"]
    named = [each.split() for each in keys]
    calls = [(command, arguments_of(command, **{key: "dada"})) for command, key in named]
    calls.append(("predict", arguments_of("predict", input="masks/*.png")))
    (place / "dada").mkdir()
    code = f"from lesionseg.cli import run; import sys; print([run(*c) for c in {calls!r}])"
    done = python("-c", f"{code}; print(*sys.modules)")
    statuses, loaded = done.stdout.splitlines()[-2:]
    assert statuses == str([1] * len(calls))
    assert not {"torch", "monai", "SimpleITK", "pytorch_lightning", "numba"} & {*loaded.split()}


@pytest.mark.parametrize(("command", "key"), KEYS)
def test_empty_path_is_not_the_current_folder(command, key, place, capsys):
    assert run(command, arguments_with(command, key, "")) == 2
    assert f"{key}= is empty" in capsys.readouterr().err


def test_empty_root_of_annotated_images_is_not_the_current_folder(place, capsys):
    assert run("train", ["data.root=", "data.annotations=boxes.csv", "run_dir=r"]) == 2
    assert "data.root= is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "key"), [("train", "data.root"), ("predict", "bundle"), ("evaluate", "output")]
)
def test_path_that_the_system_refuses_is_named(command, key, place, capsys):
    name = "a" * 300
    assert run(command, arguments_of(command, **{key: name})) == 1
    assert f"Error: {key}={name}: " in capsys.readouterr().err


def test_file_without_permission_is_a_sentence(place, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "out/predictions.log")

    monkeypatch.setattr(command_module, "run_recipe", refuse)
    assert run("predict", arguments_of("predict")) == 1
    assert "Error: out/predictions.log: Permission denied." in capsys.readouterr().err


def test_empty_path_among_several_bundles_is_an_error(place):
    with pytest.raises(ConfigError, match="bundle= is empty"):
        lesionseg.predict(["model", ""], "masks", "out")


# the keys whose files no command downloads or uploads
LOCAL_KEYS = [
    (command, key)
    for command, key in KEYS
    if key not in ("data.root", "input") and (command, key) != ("predict", "output")
]


@pytest.mark.parametrize(("command", "key"), LOCAL_KEYS)
def test_url_is_an_error_unless_the_command_downloads_or_uploads_it(command, key, place, capsys):
    url = "memory://bucket/x"
    assert run(command, arguments_with(command, key, url)) == 2
    assert f"{key}={url}: this cannot be a URL" in capsys.readouterr().err


def test_mistyped_input_is_an_error_before_a_model_is_downloaded(place, capsys):
    model = "https://127.0.0.1:1/model.zip"
    assert run("predict", arguments_of("predict", bundle=model, input="nowhere")) == 1
    error = capsys.readouterr().err
    assert "input=nowhere" in error
    assert "127.0.0.1" not in error


@pytest.mark.parametrize("command", ["predict", "evaluate", "follow"])
@pytest.mark.parametrize("name", ["res.nii.gz", "res.png", "res.csv"])
def test_output_that_is_the_name_of_a_file_is_refused(command, name, place, capsys):
    assert run(command, arguments_of(command, output=name)) == 1
    assert f"output={name} is a file. Name a folder" in capsys.readouterr().err
    assert not (place / name).exists()
