"""What the authors supply, the way of the scans, and the reporting guidelines."""

from collections.abc import Mapping

from lesionseg.report.text.amounts import NOT_STATED, count

STUDY: Mapping[str, str] = {
    "intended_use": "Intended use",
    "not_for": "What it is not for",
    "users": "Who is meant to use it, and what they must know",
    "objectives": "Objectives",
    "design": "Prospective or retrospective",
    "registration": "Registration, protocol",
    "ethics": "Ethics",
    "population": "Population",
    "alternatives": "Other diagnoses among those without a lesion",
    "eligibility": "Eligibility",
    "sampling": "Consecutive, random or convenience sample",
    "dates": "Dates",
    "sites": "Sites",
    "scanners": "Scanners",
    "acquisition": "How images were acquired and prepared",
    "data_source": "Source of the data: routine, collected for this, public",
    "representativeness": "How these scans differ from those of use and of training",
    "sample_size": "How the number of patients was fixed",
    "deidentification": "Removal of identifiers",
    "exclusions": "Exclusions",
    "reference_readers": "Who read the reference",
    "reference_consensus": "How consensus was found",
    "reference_tools": "Tools of the readers",
    "reference_blinding": "What the readers could see",
    "test_blinding": "What the model had seen of these patients or references",
    "reference_rationale": "Why this reference",
    "interval": "Time between scan and reference",
    "model": "Model",
    "training_data": "Training data",
    "threshold": "Threshold prespecified or exploratory",
    "indeterminate": "Missing or unclear results",
    "harm": "Harm done by test or reference",
    "robustness": "Other scanners, sites or settings",
    "explainability": "How results were made understandable",
    "fairness": "Groups of patients compared",
    "limitations": "Limitations",
    "implications": "Implications for practice",
    "availability": "Code, model and data",
    "funding": "Funding",
    "interests": "Interests",
}
STUDY_TEXT = (
    "Supplied by the authors of the evaluation (report.study=study.yaml; docs/study.yaml is a "
    "template). Nothing of it can be checked from the files."
)
FLOW_FOUND, FLOW_EXCLUDED = "Scans found", "Left out before"
FLOW_ENTERED, FLOW_FAILED = "Scans evaluated", "Without a result"
FLOW_RESULT = "Scans with a result"
CHECKLISTS_TEXT = (
    "Which items of two reporting guidelines this page answers: automatically, by what was "
    "supplied, or not at all. What they ask for is put in other, shorter words here; the "
    "guidelines themselves count. An answered item is not yet a good answer."
)
STATES: Mapping[str, str] = {
    "automatic": "automatic",
    "supplied": "supplied",
    "not stated": NOT_STATED,
}
HEADINGS_FLOW = ("Step", "Scans")
HEADINGS_STUDY = ("Question", "Answer")
HEADINGS_CHECKLIST = ("Item", "Asks for", "Here", "Where")


def supplied(n: int, of: int) -> str:
    """How much of a study file was filled in."""
    asked = count(of, "question")
    return f"{n} of {asked} answered." if n else f"Nothing was supplied: {asked} {NOT_STATED}."


def unexplained(n: int) -> str:
    """The stated numbers of a flow do not add up; empty when they do."""
    if not n:
        return ""
    what = "unaccounted for" if n > 0 else "more than were found"
    return f"The stated numbers do not add up: {count(abs(n), 'scan')} {what}."


def checklist_sentence(automatic: int, supplied: int, missing: int) -> str:
    """How many items are in which state."""
    return f"{automatic} answered automatically, {supplied} supplied, {missing} {NOT_STATED}."
