"""Which items of two reporting guidelines a report answers: by itself, by study.yaml, or not.

STARD 2015 (Bossuyt et al., BMJ 2015;351:h5527), which STARD-AI (Sounderajah et al., Nature
Medicine 2025) keeps and extends; the numbers are those of STARD 2015, additions for artificial
intelligence are marked AI. CLAIM 2024 (Tejani et al., Radiology: Artificial Intelligence
2024;6:e240300), numbered as there. The words are our own; the guidelines' are longer and count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lesionseg.report.study import Study

State = Literal["automatic", "supplied", "not stated"]


@dataclass(frozen=True)
class Item:
    """One item: its number, what it asks for, and what answers it.

    `section` of the report answers it without help; `keys` of study.yaml do when filled in. An
    item with neither belongs into the paper around the report.
    """

    number: str
    asks: str
    keys: tuple[str, ...] = ()
    section: str = ""

    def state(self, study: Study) -> State:
        """How far this report answers the item."""
        if self.section:
            return "automatic"
        stated = any(key in study.answers for key in self.keys)
        return "supplied" if stated else "not stated"


@dataclass(frozen=True)
class Checklist:
    """A guideline's items in its own order."""

    name: str
    source: str
    items: tuple[Item, ...]

    def n(self, state: State, study: Study) -> int:
        """How many items are in a state."""
        return sum(item.state(study) == state for item in self.items)


def _items(rows: Sequence[tuple[str, str, str]]) -> tuple[Item, ...]:
    """Items from (number, words, answer): `#section`, or keys of study.yaml between spaces."""
    return tuple(
        Item(number, asks, section=answer[1:])
        if answer.startswith("#")
        else Item(number, asks, tuple(answer.split()))
        for number, asks, answer in rows
    )


STARD = Checklist(
    "STARD 2015 with the additions of STARD-AI",
    "Bossuyt et al., BMJ 2015;351:h5527; Sounderajah et al., Nature Medicine 2025",
    _items(
        (
            ("1", "title: a study of diagnostic accuracy, with a measure of it", "#summary"),
            ("2", "abstract: design, methods, results, conclusions", "#summary"),
            ("3", "background; intended use and clinical role", "intended_use"),
            ("4", "objectives and hypotheses", "objectives"),
            ("5", "data collected before or after index test and reference", "design"),
            ("6", "eligibility criteria", "eligibility"),
            ("7", "on what basis patients were identified", "eligibility population"),
            ("8", "where and when", "sites dates"),
            ("9", "consecutive, random or convenience series", "sampling"),
            ("10a", "index test in enough detail to repeat it", "model"),
            ("10b", "reference in enough detail to repeat it", "reference_readers"),
            ("11", "why this reference", "reference_rationale"),
            ("12a", "threshold of the index test, prespecified or exploratory", "threshold"),
            ("12b", "what counts as a lesion in the reference", "#definitions"),
            ("13a", "what the index test had seen of the reference", "training_data"),
            ("13b", "what the reference's readers knew of the index test", "reference_blinding"),
            ("14", "how accuracy was estimated or compared", "#definitions"),
            ("15", "indeterminate results", "indeterminate"),
            ("16", "missing data of test or reference", "#flow"),
            ("17", "variability of accuracy, prespecified or exploratory", "#size"),
            ("18", "intended sample size", "sample_size"),
            ("19", "flow of participants in a diagram", "#flow"),
            ("20", "baseline characteristics", "population"),
            ("21a", "severity among those with the condition", "#size"),
            ("21b", "other diagnoses among those without", "population"),
            ("22", "interval and treatment between test and reference", "interval"),
            ("23", "results of the test against the reference", "#cases"),
            ("24", "accuracy with its precision", "#froc"),
            ("25", "harm done by test or reference", ""),
            ("26", "limitations: bias, uncertainty, generality", "limitations"),
            ("27", "implications for practice", "implications"),
            ("28", "registration", "registration"),
            ("29", "where the protocol can be read", "registration"),
            ("30", "funding", "funding"),
            ("AI", "ethical approval and consent", "ethics"),
            ("AI", "where the data came from, and how it was split", "training_data"),
            ("AI", "acquisition: scanners and protocols", "scanners"),
            ("AI", "preparation of the images, removal of identifiers", "deidentification"),
            ("AI", "name and version of the model and its software", "#provenance"),
            ("AI", "what the test was run on: role of these data in development", "#provenance"),
            ("AI", "failed runs and errors, counted and shown", "#gallery"),
            ("AI", "groups of patients compared: bias and fairness", "fairness"),
            ("AI", "access to code, model and data", "availability"),
            ("AI", "commercial interests", "interests"),
        )
    ),
)

CLAIM = Checklist(
    "CLAIM 2024",
    "Tejani et al., Radiology: Artificial Intelligence 2024;6:e240300",
    _items(
        (
            ("1", "title: a study of artificial intelligence, with its kind", "#provenance"),
            ("2", "abstract", "#summary"),
            ("3", "background; intended use and clinical role", "intended_use"),
            ("4", "aims and hypotheses", "objectives"),
            ("5", "prospective or retrospective", "design"),
            ("6", "goal of the study", "objectives"),
            ("7", "sources of the data", "sites training_data"),
            ("8", "inclusion and exclusion, where and when", "eligibility"),
            ("9", "preparation of the data", "#provenance"),
            ("10", "selection of subsets", "exclusions"),
            ("11", "removal of identifiers", "deidentification"),
            ("12", "missing data", "#flow"),
            ("13", "how images were acquired", "scanners"),
            ("14", "how the reference was made", "reference_readers"),
            ("15", "why this reference", "reference_rationale"),
            ("16", "who annotated, with what training", "reference_readers"),
            ("17", "how the test set was annotated, with which tools", "reference_tools"),
            ("18", "variability within and between readers", "reference_consensus"),
            ("19", "how data were assigned to partitions", "training_data"),
            ("20", "level at which partitions are apart", "#provenance"),
            ("21", "intended size of the test set", "sample_size"),
            ("22", "the model in detail", "model"),
            ("23", "software, libraries, versions", "#provenance"),
            ("24", "how parameters were initialised", "model"),
            ("25", "how it was trained", "model"),
            ("26", "how the final model was selected", "model"),
            ("27", "ensembles", "model"),
            ("28", "measures of performance", "#definitions"),
            ("29", "significance and uncertainty", "#definitions"),
            ("30", "robustness and sensitivity", "robustness"),
            ("31", "explainability", "explainability"),
            ("32", "evaluation on internal data", "#summary"),
            ("33", "testing on external data", "sites"),
            ("34", "registration of a clinical trial", "registration"),
            ("35", "numbers included and excluded, in a diagram", "#flow"),
            ("36", "characteristics of patients in each partition", "population"),
            ("37", "performance on all partitions, against standards", "#froc"),
            ("38", "diagnostic performance with its precision", "#size"),
            ("39", "analysis of failures", "#gallery"),
            ("40", "limitations", "limitations"),
            ("41", "implications for practice", "implications"),
            ("42", "where the full protocol is", "registration"),
            ("43", "access to software, model and data", "availability"),
            ("44", "funding and interests", "funding interests"),
        )
    ),
)
CHECKLISTS = (STARD, CLAIM)
