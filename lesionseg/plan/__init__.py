"""From dataset statistics to decisions: fingerprint, rules, plan and splits; no network here."""

from lesionseg.plan.fingerprint import Fingerprint as Fingerprint
from lesionseg.plan.fingerprint import take_fingerprint as take_fingerprint
from lesionseg.plan.make import PlanOverrides as PlanOverrides
from lesionseg.plan.make import make_plan as make_plan
from lesionseg.plan.plan import Architecture as Architecture
from lesionseg.plan.plan import CandidateRule as CandidateRule
from lesionseg.plan.plan import Normalisation as Normalisation
from lesionseg.plan.plan import Plan as Plan
from lesionseg.plan.splits import Splits as Splits
from lesionseg.plan.splits import make_splits as make_splits

__all__ = [
    "Architecture",
    "CandidateRule",
    "Fingerprint",
    "Normalisation",
    "Plan",
    "PlanOverrides",
    "Splits",
    "make_plan",
    "make_splits",
    "take_fingerprint",
]
