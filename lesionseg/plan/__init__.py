"""Decisions from dataset statistics: fingerprint, planning rules, plan and splits."""

from lesionseg.plan.fingerprint import Fingerprint, facts_of, fingerprint_of
from lesionseg.plan.make import make_plan
from lesionseg.plan.plan import Architecture, CandidateRule, Normalisation, Plan
from lesionseg.plan.splits import Splits, make_splits

__all__ = [
    "Architecture",
    "CandidateRule",
    "Fingerprint",
    "Normalisation",
    "Plan",
    "Splits",
    "facts_of",
    "fingerprint_of",
    "make_plan",
    "make_splits",
]
