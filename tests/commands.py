"""Commands with the settings that a test names; the others are those of `conf/`."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lesionseg.config import COMMANDS


def python(*arguments: Any, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own; its exit status and what it said."""
    how = {"capture_output": True, "text": True, "check": False, **how}
    return subprocess.run([sys.executable, *map(str, arguments)], **how)


def _command(name: str, *keys: str) -> Callable[..., Any]:
    def call(*values: Any, **settings: Any) -> Any:
        recipe = getattr(import_module(f"lesionseg.pipeline.{name}"), name)
        options = {k: settings.pop(k) for k in ("architectures", "progress") if k in settings}
        given = dict(zip(keys, values, strict=False))
        return recipe(COMMANDS[name].of(**given, **settings), **options)

    return call


predict = _command("predict", "bundle", "input", "output")
evaluate = _command("evaluate", "reference", "prediction", "output")
follow = _command("follow", "before", "after", "output")
export = _command("export", "bundle", "output")
