"""Where the figures come from: versions, hashes, settings; nothing that names a person or place."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lesionseg.evaluation.score_sections import Scores
from lesionseg.io.atomic import read_yaml
from lesionseg.report import text

# Long hexadecimal numbers: hashes of data, which others could recompute from the same files.
HASH = re.compile(r"\b[0-9a-fA-F]{32,}\b")
PATH = re.compile(r"[/\\]")
# settings that hold a place, even where it has no separator
ABOUT_DATA = re.compile(r"(^|[._])(root|dir|path|file|splits)$")


def origin(scores: Scores, run: Path, *, identifiers: bool) -> list[tuple[str, str]]:
    """Everything the scores say of their origin and, of a run directory, its settings.

    Nested keys are joined by dots. Without `identifiers`, paths and hashes are withheld.
    """
    said = {
        "preset": scores.preset,
        "evaluated_on": scores.evaluated_on,
        "split_is_group_safe": scores.split_is_group_safe,
        "operating_point": scores.raw.get("operating_point") or {},
        **scores.provenance,
        **({"config": config} if (config := _config(run)) else {}),
    }
    lines = [(key, _words(value)) for key, value in _flatten(said)]
    return [(key, value if identifiers else withhold(key, value)) for key, value in lines]


def trained_model(scores: Scores, run: Path) -> str:
    """The network of a run directory and what trained it; empty for other evaluations."""
    network = (_config(run).get("model") or {}).get("architecture")
    if not isinstance(network, str):
        return ""
    made = scores.provenance
    return text.trained(network, str(made.get("lesionseg", "")), str(made.get("git_commit") or ""))


def withhold(key: str, value: str) -> str:
    """The value, or a word in its place when it is a path, a hash or the name of a data set.

    >>> withhold("seed", "0"), withhold("data_sha256", "0123456789abcdef" * 4)[:8]
    ('0', 'withheld')
    """
    module = key.endswith("_target_")
    found = HASH.search(value) or PATH.search(value) or ABOUT_DATA.search(key)
    return text.WITHHELD if found and not module and value != text.NOT_STATED else value


def _config(run: Path) -> Mapping[str, Any]:
    """The resolved configuration of a run directory; empty when these scores have none."""
    path = (run.parent if run.name == "test" else run) / "config.yaml"
    return read_yaml(path) if path.is_file() else {}


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text.NOT_STATED if value is None else str(value)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
