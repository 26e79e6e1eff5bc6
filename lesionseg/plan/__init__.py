"""Decisions from dataset statistics: fingerprint, planning rules, plan and splits."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.plan.fingerprint import Fingerprint as Fingerprint
    from lesionseg.plan.fingerprint import fingerprint_of as fingerprint_of
    from lesionseg.plan.fingerprint import measure_case as measure_case
    from lesionseg.plan.make import make_plan as make_plan
    from lesionseg.plan.plan import Architecture as Architecture
    from lesionseg.plan.plan import CandidateRule as CandidateRule
    from lesionseg.plan.plan import Normalisation as Normalisation
    from lesionseg.plan.plan import Plan as Plan
    from lesionseg.plan.plan import heads_of as heads_of
    from lesionseg.plan.splits import Splits as Splits
    from lesionseg.plan.splits import make_splits as make_splits

_HOMES = {
    "Architecture": "plan",
    "CandidateRule": "plan",
    "Fingerprint": "fingerprint",
    "Normalisation": "plan",
    "Plan": "plan",
    "Splits": "splits",
    "measure_case": "fingerprint",
    "fingerprint_of": "fingerprint",
    "make_plan": "make",
    "make_splits": "splits",
    "heads_of": "plan",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
