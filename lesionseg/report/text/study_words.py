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
    "subgroups": "Subgroups stated before the results were known",
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


Rows = tuple[tuple[str, str, str], ...]

STARD_AI_NAME = "STARD-AI (2025)"
STARD_AI_SOURCE = (
    "Sounderajah et al., Nature Medicine 2025;31:3283-3289, doi 10.1038/s41591-025-03953-8: 40 "
    "items in 48 rows, with numbers of its own; * new or changed against STARD 2015 (Bossuyt et "
    "al., BMJ 2015;351:h5527). Its author correction of 2026 changes no item."
)
STARD_AI: Rows = (
    ("1*", "title or abstract: accuracy of an AI, with a measure of it", "#summary"),
    ("2", "abstract: design, methods, results, conclusions", "#summary"),
    ("3*", "background; intended use, new or established, place in the workflow", "intended_use"),
    ("4", "objectives and hypotheses", "objectives"),
    ("5", "data collected before or after index test and reference", "design"),
    ("6*", "ethical approval, or why none was needed", "ethics"),
    ("7*", "who and which data could be included, in the order of the steps", "eligibility"),
    ("8", "on what basis patients were identified", "population"),
    ("9", "where and when", "sites dates"),
    ("10", "consecutive, random or convenience series", "sampling"),
    ("11*", "source of the data: routine, collected for this, or public", "data_source"),
    ("12*", "who annotated, with what experience, and how", "reference_readers"),
    ("13*", "devices that took the images; software of the index test", "scanners"),
    ("14*", "acquisition protocols; preparation of the images", "acquisition"),
    ("15a", "index test in enough detail to repeat it", "model"),
    ("15b*", "how it was developed: training, validation, test, sizes", "training_data"),
    ("15c", "its threshold: how chosen, prespecified or exploratory", "threshold"),
    ("15d*", "who is meant to use it, and what they must know", "users"),
    ("16a", "reference in enough detail to repeat it", "reference_readers"),
    ("16b", "why this reference", "reference_rationale"),
    ("16c", "what counts as a lesion in the reference", "#definitions"),
    ("17a", "what the index test had seen of reference or patient", "test_blinding"),
    ("17b", "what the reference's readers knew of test or patient", "reference_blinding"),
    ("18", "how accuracy was estimated or compared", "#definitions"),
    ("19", "indeterminate results", "indeterminate"),
    ("20", "missing data of test or reference", "#flow"),
    ("21", "variability of accuracy, prespecified or exploratory", "#subgroups #size"),
    ("22", "intended sample size, and how it was fixed", "sample_size"),
    ("23*", "analysis of errors, of bias and fairness", "#why&fairness"),
    ("24", "flow of participants in a diagram", "#flow&=found"),
    ("25*", "characteristics of training, validation and test sets", "population"),
    ("26a", "severity among those with the condition", "#size"),
    ("26b", "other diagnoses among those without", "alternatives"),
    ("27", "interval and treatment between test and reference", "interval"),
    ("28*", "whether these data resemble those of the intended use", "representativeness"),
    ("29*", "how external data differ from those of development", "representativeness"),
    ("30", "results of the test against the reference", "#cases"),
    ("31", "accuracy with its precision", "#size&=intervals"),
    ("32", "harm done by test or reference", "harm"),
    ("33", "limitations: bias, uncertainty, generality", "limitations"),
    ("34", "implications for practice", "implications"),
    ("35*", "ethical considerations, fairness in use", "fairness"),
    ("36", "registration", "registration"),
    ("37", "where the protocol can be read", "registration"),
    ("38", "funding", "funding"),
    ("39*", "commercial interests", "interests"),
    ("40a*", "access to data and code", "availability"),
    ("40b*", "whether outputs are kept and can be audited", "#candidates"),
)

CLAIM_NAME = "CLAIM 2024"
CLAIM_SOURCE = (
    "Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300, "
    "doi 10.1148/ryai.240300: 44 items."
)
CLAIM: Rows = (
    ("1", "title: a study of artificial intelligence, with its kind", "#provenance"),
    ("2", "abstract", "#summary"),
    ("3", "background; intended use and clinical role", "intended_use"),
    ("4", "aims and hypotheses", "objectives"),
    ("5", "prospective or retrospective", "design"),
    ("6", "goal of the study", "objectives"),
    ("7", "sources of the data", "data_source sites"),
    ("8", "inclusion and exclusion, where and when", "eligibility"),
    ("9", "preparation of the data", "#provenance"),
    ("10", "selection of subsets", "exclusions"),
    ("11", "removal of identifiers", "deidentification"),
    ("12", "missing data", "#flow"),
    ("13", "how images were acquired", "acquisition scanners"),
    ("14", "how the reference was made", "reference_readers"),
    ("15", "why this reference", "reference_rationale"),
    ("16", "who annotated, with what training", "reference_readers"),
    ("17", "how the test set was annotated, with which tools", "reference_tools"),
    ("18", "variability within and between readers", "reference_consensus"),
    ("19", "how data were assigned to partitions", "training_data"),
    ("20", "level at which partitions are apart", "#provenance&=split"),
    ("21", "intended size of the test set", "sample_size"),
    ("22", "the model in detail", "model"),
    ("23", "software, libraries, versions", "#provenance"),
    ("24", "how parameters were initialised", "model"),
    ("25", "how it was trained", "#training model"),
    ("26", "how the final model was selected", "model"),
    ("27", "ensembles", "model"),
    ("28", "measures of performance", "#definitions"),
    ("29", "significance and uncertainty", "#definitions&=intervals"),
    ("30", "robustness and sensitivity", "robustness"),
    ("31", "explainability", "explainability"),
    ("32", "testing on internal data", "#summary&=test"),
    ("33", "testing on external data", "#summary&=external"),
    ("34", "registration of a clinical trial", "registration"),
    ("35", "numbers included and excluded, in a diagram", "#flow&=found"),
    ("36", "characteristics of patients in each partition", "population"),
    ("37", "performance on all partitions, against standards", ""),
    ("38", "diagnostic performance with its precision", "#size&=intervals"),
    ("39", "analysis of failures", "#why #cases"),
    ("40", "limitations", "limitations"),
    ("41", "implications for practice", "implications"),
    ("42", "where the full protocol is", "registration"),
    ("43", "access to software, model and data", "availability"),
    ("44", "funding and the funders' part", "funding"),
)
