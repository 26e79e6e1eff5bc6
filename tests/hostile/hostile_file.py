"""Hostile files, and how Hypothesis makes them of valid ones; nothing is fetched."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Files = st.SearchStrategy["HostileFile"]


@dataclass(frozen=True)
class HostileFile:
    """One attempt: a file's name and content; `beside` are valid files of the same folder."""

    name: str
    content: bytes
    beside: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def write(self, folder: Path) -> Path:
        """Write it, and what stands beside it, below a folder; returns its path."""
        for name, content in {**self.beside, self.name: self.content}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / self.name


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Cut off, with some bytes turned over, garbage in front or behind, or all of it garbage."""
    last, garbage = max(len(content) - 1, 0), st.binary(max_size=40)
    changes = st.dictionaries(
        st.integers(0, last), st.integers(0, 255), min_size=1, max_size=min(17, last + 1)
    )
    return st.one_of(
        changes.map(lambda at: bytes(at.get(i, byte) for i, byte in enumerate(content))),
        st.integers(0, last).map(lambda stop: content[:stop]),
        garbage.map(lambda bytes_: bytes_ + content),
        garbage.map(lambda bytes_: content + bytes_),
        st.binary(max_size=1000),
    )


@st.composite
def files(
    draw: st.DrawFn,
    name: str,
    contents: st.SearchStrategy[bytes],
    beside: Mapping[str, bytes] | None = None,
) -> HostileFile:
    """Files of one name; one in four is damaged besides."""
    content = draw(contents)
    if draw(st.integers(0, 3)) == 3 and len(content) < 2**14:
        content = draw(damaged(content))
    return HostileFile(name, content, beside or {})


def some_of(names: Any, values: Callable[[str], st.SearchStrategy[Any]]) -> Any:
    """One to three of the names, each with a value of its own."""
    chosen = st.lists(st.sampled_from(list(names)), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda some: st.fixed_dictionaries({name: values(name) for name in some}))


def each(strategy: st.SearchStrategy[Any], n: int, check: Callable[[Any], None]) -> None:
    """Check `n` examples, the same each time; what fails is shown as small as it can be."""

    @settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def checked(example: Any) -> None:
        check(example)

    checked()
