"""Convert JSON content to dataclasses with pydantic: types checked, error with file and key."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from lesionseg.errors import DatasetError, LesionsegError, describe_misfits

T = TypeVar("T")

_adapter_of = cache(TypeAdapter)  # coco.json may have 100 000 entries of one type


def parse_as(
    kind: type[T],
    content: Any,
    where: str | Path = "",
    error: type[LesionsegError] = DatasetError,
    key_of: Mapping[str, str] | None = None,
) -> T:
    """Convert dictionaries and lists to a dataclass or pydantic model, and check the types.

    Args:
        kind: The dataclass or model of the result. It decides if unknown keys are ignored.
        content: The content of a file, or an entry of it.
        where: The name of the file, with which an error message begins. Empty if the caller adds
            the name.
        error: The class of the error to raise.
        key_of: The key in the file for each field whose key differs from its name. An error message
            has the key instead of the field.

    Returns:
        An object of the type `kind`.

    Raises:
        LesionsegError: If a key or the type of a value is wrong. The error has the class `error`,
            and its message has `where` and the wrong keys.
    """
    try:
        result: T = _adapter_of(kind).validate_python(content)  # type: ignore[arg-type]
        return result
    except ValidationError as failed:
        beginning = f"{where}: " if where else ""
        misfits = describe_misfits(failed, content)[:300]  # a file may have very many misfits
        for name, key in (key_of or {}).items():
            misfits = misfits.replace(name, key)
        raise error(f"{beginning}{misfits}.") from failed


def read_record(kind: type[T], text: str, where: str | Path, error: type[LesionsegError]) -> T:
    """Read an object of the type `kind` from JSON text and check its types, see `parse_as`."""
    return parse_as(kind, read_object(text, where, error), where, error)


def read_object(text: str, where: str | Path, error: type[LesionsegError]) -> dict[str, Any]:
    """Read a JSON object as a dictionary. Raise an error of the class `error` for any other text.

    `where` is the name of the file, with which an error message begins.
    """
    try:
        content = from_json(text)
    except ValueError as failed:
        raise error(f"{where}: this is not JSON ({failed}).") from failed
    if not isinstance(content, dict):
        # the first characters of the content show what it is
        raise error(f"{where}: this is not a JSON object, but {str(content)[:60]}.")
    return content
