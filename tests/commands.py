"""Commands as functions, with the settings that a test names and the defaults of `conf/`.

Intervals have five replicates, and no PDF is written, unless a test asks for more.
"""

import subprocess
import sys
from importlib import import_module

from lesionseg.config import COMMANDS, PrepareConfig
from lesionseg.pipeline import find_recipe

# the paths that a command needs, as keys and values
PATHS = {
    "train": {"data.root": "data"},
    "prepare": {"data.root": "data"},
    "tune": {"data.root": "data"},
    "predict": {"bundle": "model", "input": "masks", "output": "out"},
    "evaluate": {"reference": "masks", "prediction": "masks", "output": "out"},
    "follow": {"before": "masks", "after": "masks", "output": "out"},
    "report": {"output": "out", "scores": "scores"},
    "export": {"bundle": "model", "output": "out"},
    "serve": {"bundle": "model"},
    "info": {"bundle": "model"},
}


def arguments_of(command, **changed):
    """Return the command line that gives a command its paths."""
    return [f"{key}={value}" for key, value in {**PATHS[command], **changed}.items()]


def python(*arguments, **options):
    """Run Python in a separate process. Return its exit status and output."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def _command(name, *keys, **defaults):
    def call(*values, **settings):
        recipe = find_recipe(name)
        options = {}
        for key in ("architectures", "progress"):
            if key in settings:
                options[key] = settings.pop(key)
        settings = defaults | settings | dict(zip(keys, values, strict=False))
        return recipe(COMMANDS[name].of(**settings), **options)

    return call


def check(root, page, data=(), **settings):
    """Check a dataset, as `prepare check=true` does, and write the page. `data`: its settings."""
    check_dataset = import_module("lesionseg.pipeline.check").check_dataset
    settings_of_training = import_module("lesionseg.pipeline.run_dir").settings_of_training
    config_of = import_module("lesionseg.pipeline.run_dir").config_of
    cfg = PrepareConfig.of(data={"root": root, **dict(data)}, **settings)
    repeated = settings_of_training(config_of(cfg))
    if cfg.run_dir is not None:
        repeated["run_dir"] = cfg.run_dir
    return check_dataset(
        cfg.data, cfg.model, cfg.seed, page, settings=repeated, identifiers=cfg.identifiers
    )


predict = _command("predict", "bundle", "input", "output")
evaluate = _command("evaluate", "reference", "prediction", "output", replicates=5)
follow = _command("follow", "before", "after", "output", replicates=5)
report = _command("report", "scores", "output", report={"pdf": False})
export = _command("export", "bundle", "output")
