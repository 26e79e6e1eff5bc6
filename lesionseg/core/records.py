"""Frozen dataclasses from the JSON files that keep them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from lesionseg.errors import LesionsegError

T = TypeVar("T")


def read_record(
    kind: type[T],
    text: str,
    where: str | Path,
    error: type[LesionsegError],
    key_of: Mapping[str, str] | None = None,
) -> T:
    """Read a dataclass from JSON.

    Raises `error` naming `where` and the first key that is wrong. `key_of`: keys of the file by the
    names of fields that are not found under their own names.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as failed:
        first = failed.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the content"
        for name, in_file in (key_of or {}).items():
            if key == name or key.startswith(f"{name}."):
                key = in_file + key.removeprefix(name)
        raise error(f"{where}: {key} is {str(first['input'])[:60]}. {first['msg']}.") from failed
