"""Commands with the settings that a test names; the others are those of `conf/`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lesionseg.config import COMMANDS


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
