"""Several bundles as one: their probabilities are averaged, the first one's plan decides."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from lesionseg.errors import BundleError
from lesionseg.inference.bundles.bundle import Bundle, read_bundle
from lesionseg.models.build import NetworkFactory
from lesionseg.plan.plan import Plan

# what must be the same, for tiles and channels of all members to lie on each other
_SHARED = (
    "dims",
    "modality",
    "channel_names",
    "label_values",
    "regions",
    "spacing_mm",
    "normalisation",
    "prepare_extra",
    "tile_shape",
    "activation",
    "link",
)


def ensemble(
    bundles: Sequence[str | PathLike[str] | Bundle],
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> Bundle:
    """One bundle with the networks of all; the plan is the first one's.

    A scan may lack what all of them can do without. Raises `BundleError` when there is none or
    they do not share grid, labels and normalisation.
    """
    members = [b if isinstance(b, Bundle) else read_bundle(Path(b), architectures) for b in bundles]
    if not members:
        raise BundleError("There is no bundle.", where="bundle", expected="at least one")
    first = members[0]
    if len(members) == 1:
        return first
    for number, member in enumerate(members[1:], start=2):
        _refuse_stranger(first.plan, member.plan, number)
    networks = [network for member in members for network in member.networks]
    common = {s.missing for s in first.plan.channel_sets}.intersection(
        *({s.missing for s in member.plan.channel_sets} for member in members)
    )
    sets = tuple(s for s in first.plan.channel_sets if s.missing in common)
    plan = replace(first.plan, n_members=len(networks), channel_sets=sets)
    return Bundle(networks[0], plan, tuple(networks[1:]), first.check)


def _refuse_stranger(first: Plan, other: Plan, number: int) -> None:
    different = [name for name in _SHARED if getattr(first, name) != getattr(other, name)]
    if different:
        raise BundleError(
            f"Bundle {number} cannot be averaged with the first.",
            where="bundle",
            seen=f"another {', '.join(different)}",
            expected="the same plan, as the folds of one cross-validation have",
        )
