"""Extensions of mkdocstrings: doctests become blocks of code; lazy names of packages are found."""

import ast
import re
from typing import Any

import griffe

# from the first `>>>` to the next blank line
DOCTEST = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)


def fenced(text: str) -> str:
    """Return the docstring with its doctests in fences."""
    return DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)


class DoctestBlocks(griffe.Extension):
    """Called by griffe for everything it collects."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Fence the doctests of an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


class LazyNames(griffe.Extension):
    """Called by griffe for each module."""

    def on_module_members(self, *, mod: griffe.Module, **_kwargs: Any) -> None:
        """Export the names in `_HOMES` of a package, whose `__all__` griffe cannot evaluate."""
        homes = mod.members.get("_HOMES")
        if homes is not None:
            mod.exports = [*ast.literal_eval(str(homes.value))]
