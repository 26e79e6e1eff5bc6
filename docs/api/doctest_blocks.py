"""An extension of mkdocstrings: bare doctests of docstrings become blocks of code."""

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
