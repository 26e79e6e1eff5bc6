"""What a case may be named: its id becomes the name of every file that is written about it."""

import hashlib
import sys
from pathlib import Path
from unicodedata import category
from urllib.parse import quote

from lesionseg.errors import DatasetError, LesionsegError

# disks take 255 bytes; the longest name made of an id is ".xxxxxxxx-<id>_instances.nii.gz"
_NAME_BYTES, MAX_ID_BYTES = 255, 200
# control and format characters (bidirectional ones among them), what no encoding knows, line ends
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def check_case_id(
    case: str, where: Path | None, error: type[LesionsegError] = DatasetError
) -> None:
    """Raise `error` unless the id can be a part of file names; `where` is what it comes from."""
    fault = case_id_fault(case)
    if fault:
        raise error(f"{where}: the case id {case!r} cannot be a file name: it {fault}. Rename it.")


def case_id_fault(case: str) -> str:
    """Why an id cannot be a part of file names; "" where it can. Letters of any script pass."""
    if not case:
        return "is empty"
    if case.startswith("."):
        return "begins with a dot"
    if case != case.strip():
        return "begins or ends with a space"
    if "/" in case or "\\" in case:
        return "holds a path separator"
    if any(category(sign) in _INVISIBLE for sign in case):
        return "holds a character that does not show"
    if sys.platform == "win32" and set(case) & set('<>:"|?*'):
        return "holds a character that Windows has in no name"
    n_bytes = len(case.encode())
    return f"is too long, {n_bytes} of {MAX_ID_BYTES} bytes" if n_bytes > MAX_ID_BYTES else ""


def printable_id(case: str) -> str:
    r"""The id as tables and the log show it: one that cannot be a file name as Python quotes it.

    >>> print(printable_id("a"), printable_id("a\nb"))
    a 'a\nb'
    """
    return repr(case) if case_id_fault(case) else case


def bounded_name(case: str) -> str:
    """A file name for an id of any characters: escaped as in URLs, or its hash where too long."""
    name = quote(case, safe=" ")
    return name if len(name) <= _NAME_BYTES else hashlib.sha256(case.encode()).hexdigest()
