"""Fields of a text header, MetaImage's or NRRD's, checked before ITK sees the file.

ITK trusts a header: a number of axes or a name with `%` overruns its memory, and a path makes any
file of the machine the image. So a header passes here first, by a grammar stricter than
ITK's, so that ITK can find no other meaning in it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from lesionseg.errors import ReadError

T = TypeVar("T")

# Slicer's headers of many segments are a few 100 kB long
MOST_HEADER_BYTES = 2**20
MOST_AXES = 4
BLANK = " \t"
_BINARY = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?")
# no path, drive, pattern or list; NRRD takes "-" for standard input
_BARE_NAME = re.compile(r"(?!LIST|=|-$)[^/\\%:\x00-\x1f\x7f]{1,255}")
_REWRITE = "Write the image again as one file: .nii.gz, .nrrd or .mha."

Packing = Literal["raw", "text", "hex", "compressed"]


@dataclass(frozen=True)
class ItkHeader:
    """What a header says of its voxels.

    `n_values`: voxels times channels, of `value_bytes` each. `voxel_file`: the header's own file,
    or a regular file in the same folder. `stored_bytes`: what compressed voxels take in it, 0 where
    the header does not say.
    """

    n_values: int
    value_bytes: int
    packing: Packing
    voxel_file: Path
    stored_bytes: int = 0


@dataclass(frozen=True)
class Fields:
    """Names and values of one header; every method raises `ReadError` naming file and field."""

    path: Path
    values: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: str) -> None:
        """Take a field in; refuses one that is there already."""
        if name in self.values:
            raise ReadError(
                f"The header states {name} twice.",
                where=self.path,
                expected="once",
                remedy=_REWRITE,
            )
        self.values[name] = value.strip(BLANK)

    def text(self, name: str) -> str:
        """The value of a field that must be there."""
        if name not in self.values:
            raise ReadError(
                f"The header lacks {name}.",
                where=self.path,
                seen=", ".join(sorted(self.values)) or "no field",
                expected=name,
                remedy=_REWRITE,
            )
        return self.values[name]

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number from 0; `default` where the field is not there."""
        if name not in self.values and default is not None:
            return default
        value = self.text(name)
        if not _INTEGER.fullmatch(value):
            raise self.wrong(name, "an integer from 0")
        return int(value)

    def axes(self, name: str) -> int:
        """The number of axes, 1 to 4."""
        n = self.integer(name)
        if not 1 <= n <= MOST_AXES:
            raise other_axes(self.path, n)
        return n

    def sizes(self, name: str, n_axes: int) -> list[int]:
        """Whole numbers from 1, one an axis."""
        words = self._words(name)
        if len(words) != n_axes or not all(_INTEGER.fullmatch(w) and int(w) for w in words):
            raise self.wrong(name, f"{n_axes} integers from 1")
        return [int(word) for word in words]

    def check_numbers(self, name: str, n: int) -> None:
        """Refuse a field that is there and holds other than `n` numbers: ITK would read on."""
        if name not in self.values:
            return
        words = self._words(name)
        if len(words) != n or not all(_NUMBER.fullmatch(word) for word in words):
            raise self.wrong(name, f"{n} numbers")

    def one_of(self, name: str, known: Mapping[str, T], default: T | None = None) -> T:
        """What a known word stands for; `default` where the field is not there."""
        if name not in self.values and default is not None:
            return default
        if self.text(name) not in known:
            raise self.wrong(name, ", ".join(known))
        return known[self.values[name]]

    def file_beside(self, name: str) -> Path:
        """The regular file in the header's own folder that a field names, without a path."""
        value = self.text(name)
        if not _BARE_NAME.fullmatch(value):
            raise ReadError(
                "The header points out of its folder, or at several files.",
                where=self.path,
                seen=f"a path, a pattern or a list in {name}",
                expected="voxels in the same file, or the bare name of one file next to it",
                remedy=_REWRITE,
            )
        file = self.path.parent / value
        if not file.is_file() or file.resolve().parent != self.path.parent.resolve():
            raise ReadError(
                "The file with the voxels is missing, or is not a regular file in the same folder.",
                where=self.path,
                seen=value,
                expected="a regular file in the header's folder",
                remedy="Copy the file itself next to its header.",
            )
        return file

    def wrong(self, name: str, expected: str) -> ReadError:
        """The refusal of a field's value."""
        seen = self.values[name]
        return ReadError(
            f"The header's {name} is wrong.",
            where=self.path,
            seen=repr(seen if len(seen) <= 60 else seen[:60] + "…"),
            expected=expected,
            remedy=_REWRITE,
        )

    def _words(self, name: str) -> list[str]:
        value = self.text(name)
        return value.split() if value.isascii() else []


def header_lines(path: Path) -> Iterator[str]:
    """The lines of a file's header without their ends, as long as they are asked for.

    Raises `ReadError` at a line that holds other than text, and past 1 MiB.
    """
    with path.open("rb") as stream:
        start = stream.read(MOST_HEADER_BYTES)
    *lines, rest = start.split(b"\n")
    for line in lines:
        yield _as_text(path, line)
    if len(start) == MOST_HEADER_BYTES:
        raise ReadError(
            "The header has no end.",
            where=path,
            seen=f"{MOST_HEADER_BYTES} bytes of it",
            expected="a shorter one",
            remedy=_REWRITE,
        )
    if rest:
        yield _as_text(path, rest)


def no_field(path: Path, expected: str) -> ReadError:
    """The refusal of a line that is no field; the line may name a patient, and is not quoted."""
    return ReadError(
        "A line of the header is not a field.", where=path, expected=expected, remedy=_REWRITE
    )


def other_axes(path: Path, n_axes: int, n_channels: int = 1) -> ReadError:
    """The refusal of what has several values per voxel, or other than two or three axes."""
    return ReadError(
        "The file does not hold one value per voxel on two or three axes.",
        where=path,
        seen=f"{n_axes} axes, {n_channels} values per voxel",
        remedy="Split it into one file per channel: <case>_0000, <case>_0001, ….",
    )


def _as_text(path: Path, line: bytes) -> str:
    line = line.removesuffix(b"\r")
    if _BINARY.search(line):
        raise ReadError(
            "The header is damaged: it holds other than text.", where=path, remedy=_REWRITE
        )
    return line.decode("utf-8", "surrogateescape")
