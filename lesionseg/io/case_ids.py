"""Case ids: allowed characters, length, channel suffix `_0000`, ids that are equal, printing."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from unicodedata import category, normalize

from lesionseg.errors import DatasetError, LesionsegError
from lesionseg.io.files import digest_of
from lesionseg.io.volumes import strip_suffix

# file systems allow 255 bytes; the longest name is
# ".xxxxxxxx-<entities>_space-orig_label-lesion_desc-<suffix>_mask.nii.gz"
MAX_ID_BYTES = 200
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names of the files of a case
_DIGEST_DIGITS = 10  # digits of the digest that replaces the middle of an id that is too long
# Unicode categories: control, format (including bidirectional), line and paragraph ends
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})
_SURROGATE = "Cs"  # category of characters that Python reads from bytes that are not UTF-8


def case_id(parts: Iterable[str]) -> str:
    """Join the parts of a path by `_` to a case id, without checking their characters.

    An id of more than `MAX_ID_BYTES` bytes is too long for file names. Its middle is replaced by a
    digest of all parts, so that different paths keep different ids.

    >>> case_id(["2026-01-07", "P017", "FLAIR"])
    '2026-01-07_P017_FLAIR'
    """
    parts = [*parts]
    case = "_".join(parts)
    encoded = case.encode(errors="replace")
    if len(encoded) <= MAX_ID_BYTES:
        return case
    digest = digest_of("/".join(parts))[:_DIGEST_DIGITS]
    n_end_bytes = (MAX_ID_BYTES - len(digest) - len("__")) // 2  # at each end of the id
    begin = encoded[:n_end_bytes].decode(errors="ignore")  # drops a letter that was cut in two
    end = encoded[-n_end_bytes:].decode(errors="ignore")
    # without spaces next to the digest
    return f"{begin.rstrip()}_{digest}_{end.lstrip()}"


def path_id(path: Path) -> str:
    """Make a case id from the folders and the name of a path.

    These parts of the path do not become part of the id:

    - the suffix of the file,
    - the channel number 0, `_0000` (any other number remains),
    - `..`, and the root of an absolute path.

    An id that is too long is shortened by `case_id`.

    >>> path_id(Path("p1/view.1.png")), path_id(Path("../p2/t1_0000.nii.gz"))
    ('p1_view.1', 'p2_t1')
    """
    folders = [part for part in path.parent.parts if part not in (path.anchor, "..")]
    name = strip_suffix(path)
    without_channel, number = split_channel(name)
    return case_id([*folders, without_channel if number == 0 else name])


def split_channel(name: str) -> tuple[str, int | None]:
    """Split the name of a file, without suffix, into a case id and the number of a channel.

    nnU-Net names the files of a case `<case>_0000`, `<case>_0001` and so on. The number is None if
    the name does not end in an underscore and four digits.

    >>> split_channel("P01_0001"), split_channel("P01")
    (('P01', 1), ('P01', None))
    """
    match = _CHANNEL.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def comparison_key(case: str) -> str:
    """Return a text that is equal for case ids that are the same file name on some file system.

    The text is used to find clashes: upper and lower case are equal on Windows and macOS, and so
    are the two encodings of an accented letter.

    >>> comparison_key("P1") == comparison_key("p1")
    True
    """
    folded = normalize("NFC", case).casefold()
    return normalize("NFC", folded)  # because folding separates some letters from their accents


def check_case_id(case: str, where: object, error: type[LesionsegError] = DatasetError) -> None:
    """Raise an error if a case id cannot be part of a file name, see `case_id_problem`.

    Args:
        case: The case id.
        where: The file, line or folder that contains the id, for the message.
        error: The type of the error that is raised.
    """
    if problem := case_id_problem(case):
        raise error(
            f"{where}: the case id {case!r} cannot be a file name: it {problem}. Rename it."
        )


def case_id_problem(case: str) -> str:
    """Return the first reason why a case id cannot be part of a file name, such as "is empty".

    Return "" if the id can be part of a file name. Letters of all scripts are allowed.
    """
    n_bytes = len(case.encode(errors="replace"))
    problems = {
        "is empty": not case,
        "begins with a dot": case.startswith("."),
        "begins or ends with a space": case != case.strip(),
        "contains a path separator": "/" in case or "\\" in case,
        "contains bytes that are not UTF-8": any(category(c) == _SURROGATE for c in case),
        "contains an invisible character": any(category(c) in _INVISIBLE for c in case),
        "contains a character that Windows forbids": sys.platform == "win32"
        and bool(set(case) & set('<>:"|?*')),
        f"is too long, {n_bytes} of {MAX_ID_BYTES} bytes": n_bytes > MAX_ID_BYTES,
    }
    return next((problem for problem, applies in problems.items() if applies), "")


def printable_id(case: str) -> str:
    r"""Return a case id in the form in which tables and the log show it.

    An id that cannot be a file name is quoted, with escaped control characters, as by `repr`.

    >>> print(printable_id("a"), printable_id("a\nb"))
    a 'a\nb'
    """
    return repr(case) if case_id_problem(case) else case
