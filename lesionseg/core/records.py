"""Read frozen dataclasses from JSON files."""

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
    """Read a dataclass from JSON and check its types. Unknown keys are ignored.

    Args:
        kind: the dataclass.
        text: the JSON text.
        where: name of the file in error messages.
        error: the class of the error to raise.
        key_of: the key in the file for each field whose key differs from its name.

    Raises:
        LesionsegError: an error of the class `error`, which names `where` and the first wrong key.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as failed:
        first = failed.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the content"
        # the input of a missing key is the object that lacks it
        is_missing = first["type"] == "missing"
        fault = "missing" if is_missing else f"{str(first['input'])[:60]}. {first['msg']}"
        for name, in_file in (key_of or {}).items():
            if key == name or key.startswith(f"{name}."):
                key = in_file + key.removeprefix(name)
        raise error(f"{where}: {key} is {fault}.") from failed
