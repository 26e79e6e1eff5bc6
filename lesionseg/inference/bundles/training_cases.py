"""Which cases a model has seen: hashes in the bundle's model card, for clean test sets.

A hash tells nobody who a patient is, but who knows a name can look whether it is there.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lesionseg.errors import BundleError
from lesionseg.inference.bundles.bundle import CARD, resolve_bundle

SeenAs = Literal["train", "validation", "earlier", "unknown"]
_ROW = re.compile(
    r"^\| (train|validation|earlier|unknown) \| ([0-9a-f]*) \| ([0-9a-f]*) \| ([0-9a-f ]*?) *\|$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class TrainingCase:
    """A case that a model has seen: hashes of its name and its patient's, digests of its images.

    `seen_as`: `validation` cases chose operating points; `earlier` ones taught the weights that
    training began with. `unknown` stands for all cases of weights that came without such a list.
    """

    seen_as: SeenAs
    case: str = ""
    patient: str = ""
    images: tuple[str, ...] = ()


def hashed(name: str) -> str:
    """Sixteen hexadecimal digits of a case's or patient's name, upper and lower case alike.

    >>> hashed("Sub-01") == hashed("sub-01")
    True
    """
    return hashlib.sha256(name.strip().casefold().encode()).hexdigest()[:16]


def card_lines(cases: Sequence[TrainingCase]) -> list[str]:
    """The section of the model card; empty when nothing is known of the cases."""
    if not cases:
        return []
    rows = [f"| {c.seen_as} | {c.case} | {c.patient} | {' '.join(c.images)} |" for c in cases]
    known = sum(c.seen_as != "unknown" for c in cases)
    return [
        f"This model has seen {known} cases. `lesionseg overlap bundle=DIR data=DIR` says which "
        "cases of a test set are among them, by these hashes (SHA-256, 16 digits).",
        *(["It began with weights whose cases are not known."] if known < len(cases) else []),
        "",
        "<details><summary>Hashes</summary>",
        "",
        "| seen as | case | patient | images |",
        "|---|---|---|---|",
        *rows,
        "",
        "</details>",
    ]


def read_training_cases(bundle: Path) -> tuple[TrainingCase, ...]:
    """What the card of a bundle, or of a run's, lists.

    Raises `BundleError` when there is no bundle, and for a card without such a list.
    """
    card = resolve_bundle(bundle) / CARD
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    rows = [
        TrainingCase(seen_as, case, patient, tuple(images.split()))
        for seen_as, case, patient, images in _ROW.findall(text)
    ]
    if not rows:
        raise BundleError(
            "The bundle does not say which cases it was trained on.",
            where=card,
            seen="no list of training cases" if text else "no model card",
            expected="the section 'Training cases' of the model card",
            remedy="train again with this version, or ask who trained it for the names.",
        )
    return tuple(rows)
