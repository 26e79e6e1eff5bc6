"""What a case may be named: its id becomes the name of every file that is written about it."""

import hashlib
import sys
from pathlib import Path
from unicodedata import category
from urllib.parse import quote

from lesionseg.errors import DatasetError, LesionsegError

# A name has at most 255 bytes on the disks in use; the longest one derived from an id is
# ".xxxxxxxx-<id>_instances.nii.gz", and other programs add more.
_NAME_BYTES = 255
MAX_ID_BYTES = 200
# control and format characters (bidirectional ones among them), what no encoding knows, line ends
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SEPARATORS = "/\\"
# there, what follows a colon would be a hidden part of another file
_NOT_ON_WINDOWS = frozenset('<>:"|?*')


def check_case_id(
    case: str, where: Path | None, error: type[LesionsegError] = DatasetError
) -> None:
    """Raise `error` unless the id can be a part of file names; `where` is what it comes from.

    Refused are nothing, a dot in front (`.` and `..` too), spaces at an end, `/` and backslash,
    characters that do not show, and more than `MAX_ID_BYTES` in UTF-8; on Windows any of
    `<>:"|?*`. Letters of any script pass.
    """
    fault = _fault(case)
    if fault is None:
        return
    raise error(
        f"A case id cannot be a file name: it {fault}.",
        where=where,
        seen=repr(case),
        expected=f"letters, digits, '-' or '_', at most {MAX_ID_BYTES} bytes of UTF-8",
        remedy="Rename the case, or the file or folder that it is named after.",
    )


def printable_id(case: str) -> str:
    r"""The id as tables and the log show it: one that cannot be a file name as Python quotes it.

    >>> print(printable_id("a"), printable_id("a\nb"))
    a 'a\nb'
    """
    return case if _fault(case) is None else repr(case)


def bounded_name(case: str) -> str:
    """A file name for an id of any characters: escaped as in URLs, or its hash where too long."""
    name = quote(case, safe=" ")
    return name if len(name) <= _NAME_BYTES else hashlib.sha256(case.encode()).hexdigest()


def _fault(case: str) -> str | None:
    if not case:
        return "is empty"
    if case.startswith("."):
        return "begins with a dot"
    if case != case.strip():
        return "begins or ends with a space"
    if any(sign in case for sign in _SEPARATORS):
        return "holds a path separator"
    if any(category(sign) in _INVISIBLE for sign in case):
        return "holds a character that does not show"
    if sys.platform == "win32" and not _NOT_ON_WINDOWS.isdisjoint(case):
        return "holds a character that Windows has in no name"
    n_bytes = len(case.encode())
    return f"is too long, {n_bytes} bytes" if n_bytes > MAX_ID_BYTES else None
