"""`Finding` about a case, file or dataset: severity (note, warning, error); one error for all.

A reader raises an error for a file that cannot be read, and `Finding.of` turns it into the finding
of its case. Oddities of readable files are returned as findings. No function chooses between
raising and collecting. A command decides what stops it, for example with `require_no_errors`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lesionseg.errors import DatasetError, LesionsegError

Severity = Literal["note", "warning", "error"]
LISTED = "listed"  # kind of an error in an entry of a dataset's list or in its folders
NO_CASE = "no_case"  # kind of the error that a dataset has no case
_MAX_SHOWN = 100


@dataclass(frozen=True)
class Finding:
    """Something unusual about a case, a file or a whole dataset.

    Attributes:
        kind: The kind of oddity, such as `unreadable`. The page of `prepare check=true` explains
            each kind without names of files and patients.
        message: The whole sentence, with the name of the file.
        case: The case id. Empty if the finding is about the dataset, or about an entry of its list
            that names no case.
        severity: `error` if the case or dataset cannot be used, `warning` if somebody should look
            at it, `note` if no action is needed.
        file: The file, or a kind of files such as `*.bvec`, if it does not belong to a case.
    """

    kind: str
    message: str
    case: str = ""
    severity: Severity = "warning"
    file: str = ""

    @classmethod
    def of(cls, error: Exception, case: str, where: object = "", kind: str = LISTED) -> "Finding":
        """Convert an error about a case to a finding with the severity `error`.

        Commands list such findings instead of stopping at the first error.

        Args:
            error: The error of lesionseg, or a `MemoryError`.
            case: The case id. Empty for the dataset.
            where: The file or line with which the message begins. It is added unless the error's
                text already begins with it.
            kind: The kind of the finding.
        """
        text = str(error)
        if isinstance(error, MemoryError):
            text = f"The memory ran out ({text}). Use a machine with more of it, or crop the case."
        if where and not text.startswith(f"{where}: "):
            text = f"{where}: {text}"
        return cls(kind=kind, message=text, case=case, severity="error")


@contextmanager
def collect_errors(
    findings: list[Finding], case: str, where: object = "", kind: str = LISTED
) -> Iterator[None]:
    """Collect an error that is raised in the `with` block as a finding, instead of raising it.

    The finding is appended to `findings`, so that a command can list the errors of all cases. Only
    errors of lesionseg are collected. See `Finding.of` for the other arguments.
    """
    try:
        yield
    except LesionsegError as error:
        findings.append(Finding.of(error, case, where, kind))


def errors_among(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with the severity `error`."""
    return [finding for finding in findings if finding.severity == "error"]


def require_no_errors(findings: Iterable[Finding], root: Path) -> None:
    """Raise one `DatasetError` for all errors among the findings, before a command begins its work.

    The message lists the first 100 errors. Nothing happens if there are no errors. `root` is the
    folder of the dataset, for the message.
    """
    texts = [finding.message for finding in errors_among(findings)]
    if not texts:
        return
    shown = texts[:_MAX_SHOWN]
    if len(texts) > 1:
        shown = [f"{root}: {len(texts)} entries cannot be used:", *shown]
    if len(texts) > _MAX_SHOWN:
        shown.append(f"… and {len(texts) - _MAX_SHOWN} more")
    raise DatasetError("\n  ".join(shown))  # lines below the first one are indented
