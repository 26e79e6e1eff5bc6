"""study.yaml: what a report cannot know by itself."""

import difflib
from collections.abc import Mapping
from pathlib import Path

from lesionseg.errors import ConfigError
from lesionseg.io.files import read_yaml

QUESTIONS: Mapping[str, str] = {
    "title": "Title",
    "intended_use": "Intended use",
    "population": "Patients",
    "inclusion": "Included",
    "exclusions": "Excluded",
    "sites": "Sites and scanners",
    "period": "Period",
    "reader": "Lesions marked by",
    "reference_method": "How they were marked",
    "model": "Program",
    "training_data": "It learned from",
    "funding": "Funding",
    "contact": "Contact",
    "remarks": "Remarks",
}


def read_study(path: Path | None) -> dict[str, str]:
    """The answers by key; none without a file. Raises `ReadError`, and `ConfigError` for a key
    that there is none of, naming the nearest."""
    if path is None:
        return {}
    answers = {key: value for key, value in read_yaml(path).items() if value not in (None, "")}
    for key in answers:
        if key not in QUESTIONS:
            near = difflib.get_close_matches(str(key), QUESTIONS, n=1)
            known = f"Did you mean {near[0]!r}?" if near else f"Keys are {', '.join(QUESTIONS)}."
            raise ConfigError(f"{path}: there is no key {key!r} in a study file. {known}")
    return {
        key: "; ".join(map(str, v)) if isinstance(v, list) else str(v).strip()
        for key, v in answers.items()
    }
