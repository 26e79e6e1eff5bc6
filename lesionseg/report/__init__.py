"""The report: from an evaluation's tables and the scans to a page that a clinician reads alone.

It computes no metric; it prints what `evaluation` found, and why something has no number.
`lesionseg.report(scores, output)` is the command, as `lesionseg.evaluate` is.
"""

import sys
import types
from importlib import import_module
from typing import Any

from lesionseg.report.write import write_report as write_report

__all__ = ["write_report"]


class _PackageAndCommand(types.ModuleType):
    """The package and the command have one name, and notebooks call the command by it."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return import_module("lesionseg.api").report(*arguments, **settings)


sys.modules[__name__].__class__ = _PackageAndCommand
