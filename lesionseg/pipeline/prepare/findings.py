"""What a check of a dataset found, with and without the names of cases and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lesionseg.pipeline.run.outcome import CommandOutcome

_SHOWN = 5  # cases named with a note that many share
ASK = "Cases are numbered in the dataset's order; identifiers=true prints their names and files."


@dataclass(frozen=True)
class Finding:
    """One problem of one case.

    `text` names files, for the person who has to correct them; `public` names nobody: cases are
    called by their pseudonyms. `case` is empty for an entry that is no case.
    """

    case: str
    kind: str
    severity: str
    text: str
    public: str


@dataclass(frozen=True)
class CheckOutcome(CommandOutcome):
    """All findings, the number of cases, and where the page lies."""

    n_cases: int
    findings: tuple[Finding, ...]
    pseudonyms: Mapping[str, str]
    page: Path
    identifiers: bool = False

    @property
    def exit_status(self) -> int:
        """1 when a case cannot be used."""
        return int(any(f.severity == "error" for f in self.findings))

    def summary(self) -> list[str]:
        """A line a finding, the verdict, and where the page lies; names only when asked for.

        Notes of the same words share a line.
        """
        notes: dict[str, list[Finding]] = {}
        for finding in (f for f in self.findings if f.severity == "note"):
            notes.setdefault(finding.public, []).append(finding)
        lines = [self._line(f) for f in self.findings if f.severity != "note"]
        lines += [self._note(together) for together in notes.values()]
        bad = len({f.case for f in self.findings if f.severity == "error"})
        warned = len({f.case for f in self.findings if f.severity == "warning"})
        verdict = f"{self.n_cases} cases read, {bad} cannot be used, {warned} should be looked at."
        ask = [] if self.identifiers or not lines else [ASK]
        return [*lines, *ask, verdict, f"Dataset report: {self.page}"]

    def _note(self, together: Sequence[Finding]) -> str:
        names = [f.case if self.identifiers else self.pseudonyms[f.case] for f in together]
        shown = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
        cases = "case" if len(names) == 1 else "cases"
        text = together[0].text if self.identifiers else together[0].public
        return f"- note, {len(names)} {cases} ({shown}): {text}"

    def _line(self, finding: Finding) -> str:
        name = self.pseudonyms.get(finding.case, "the list of cases")
        text = finding.public
        if self.identifiers:
            text = f"{finding.case}: {finding.text}" if finding.case else finding.text
        return f"- {finding.severity}, {name}: {text}"
