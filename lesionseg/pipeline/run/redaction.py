"""Messages without identifiers: what names a patient, a file or a folder becomes a number."""

import re
from collections.abc import Iterator
from pathlib import Path

from lesionseg.core import CaseFiles
from lesionseg.errors import LesionsegError
from lesionseg.io.formats.volumes import strip_suffix
from lesionseg.io.local_files import content_files

_QUOTED = re.compile(r"'[^']*'")
_SHORTEST = 3  # letters: a case called "a" is no identifier, and the word stands everywhere


def redact_error(error: LesionsegError, files: CaseFiles | None, pseudonym: str) -> str:
    """What is wrong, what was seen and what to do, with a case's names replaced by `pseudonym`.

    Of a case that is not known (None) only what is wrong and what to do is said, quotes emptied.
    """
    if files is None:
        message = " ".join(part for part in (error.what, error.remedy) if part)
        return _QUOTED.sub("'…'", message)
    parts = [error.what]
    parts += [f"Seen: {error.seen}."] if error.seen is not None else []
    parts += [f"Expected: {error.expected}."] if error.expected is not None else []
    parts += [f"How to fix: {error.remedy}"] if error.remedy is not None else []
    return redact(" ".join(parts), files, pseudonym)


def redact_any(error: Exception, files: CaseFiles, pseudonym: str) -> str:
    """What any error says of a case, redacted; only its class where the names are not to be had."""
    try:
        if isinstance(error, LesionsegError):
            return redact_error(error, files, pseudonym)
        return redact(repr(error), files, pseudonym)
    except Exception:  # a path that no disk takes, or links that lead in a circle
        return f"{type(error).__name__}; what it says is not told, for it may name the patient."


def redact(text: str, files: CaseFiles, pseudonym: str) -> str:
    """A text in which paths, file names, the case's id and its group are replaced."""
    words: dict[str, str] = {}
    for name, called in _names(files, pseudonym):
        if len(name) >= _SHORTEST:
            words.setdefault(name, called)  # a file often is called as its case
    for name in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", words[name], text)
    return text.replace(repr(files.case), pseudonym)


def _names(files: CaseFiles, pseudonym: str) -> Iterator[tuple[str, str]]:
    yield from ((files.case, pseudonym), (files.group, "its patient"))
    named = [(f, "the image" if len(files.images) == 1 else f"image {i}") for i, f in _count(files)]
    if files.reference is not None:
        named.append((files.reference, "the reference"))
    for path, called in named:
        yield from _of_path(path, called)
        if path.exists():  # slices of a series, or voxels beside their header
            for number, file in enumerate(content_files(path), start=1):
                yield from _of_path(file, f"file {number}")


def _count(files: CaseFiles) -> Iterator[tuple[int, Path]]:
    return iter(enumerate(files.images, start=1))


def _of_path(path: Path, called: str) -> Iterator[tuple[str, str]]:
    for form in (path, path.absolute(), path.resolve()):
        yield str(form), called
        yield str(form.parent), "its folder"
    yield path.name, called
    yield strip_suffix(path), called
