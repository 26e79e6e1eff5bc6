"""A run goes on only with the cases that it began with: others may have taught its network."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lesionseg.core import Role
from lesionseg.errors import DatasetError
from lesionseg.io.atomic import read_json
from lesionseg.pipeline.run.run_dir import is_claimed
from lesionseg.plan.splits import Splits, roles_in

SPLITS = "splits.json"
_DEVELOPMENT = ("train", "validation")
_SHOWN = 5  # cases of each kind of change that the message names


def refuse_other_cases(run: Path, splits: Splits) -> None:
    """Raise `DatasetError` where a claimed run began with other development cases or roles.

    Its network would be judged on cases that taught it. Test and external cases may come and go.
    Of a cross-validation, `splits` are those of the first fold.
    """
    path = run / SPLITS
    if not (is_claimed(run) and path.is_file()):
        return
    changes = list(_changes(roles_in(read_json(path), path, 0), splits.roles))
    if changes:
        raise DatasetError(
            "This run began with other cases, or with the same in other roles.",
            where=path,
            seen="; ".join(changes),
            remedy="name another run_dir= to train on the data as they are now, or bring back "
            "the cases as they were to resume.",
        )


def _changes(before: Mapping[str, Role], now: Mapping[str, Role]) -> Iterable[str]:
    """What happened to the development cases, a phrase a kind of change."""
    moves = {c: (before.get(c), now.get(c)) for c in sorted({*before, *now})}
    moves = {c: m for c, m in moves.items() if m[0] != m[1] and set(m) & set(_DEVELOPMENT)}
    kinds = {
        "added": [f"{c} ({new})" for c, (old, new) in moves.items() if old is None],
        "removed": [f"{c} ({old})" for c, (old, new) in moves.items() if new is None],
        "moved": [f"{c} ({old} → {new})" for c, (old, new) in moves.items() if old and new],
    }
    for kind, cases in kinds.items():
        if cases:
            rest = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
            yield f"{kind}: {', '.join(cases[:_SHOWN])}{rest}"
