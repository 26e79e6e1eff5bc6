"""The configuration file of a MONAI Bundle: its plain values, references followed, nothing run."""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.errors import BundleError
from lesionseg.io.atomic import read_yaml
from lesionseg.models.foreign_network import TARGET


@dataclass(frozen=True)
class MonaiConfig:
    """The inference file, whose `@name` is another key and whose `$…` is a value or refused."""

    path: Path
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "MonaiConfig":
        """Read JSON or YAML; raises `BundleError` naming the file."""
        return cls(path, read_object(path) if path.suffix == ".json" else read_yaml(path))

    def value(self, key: str) -> Any:
        """What a key holds; `a#b` is b within a."""
        found: Any = self.raw
        for part in key.split("#"):
            if not isinstance(found, Mapping) or part not in found:
                raise self.fault(key, "nothing", "the key")
            found = found[part]
        try:
            return self.plain(found, key)
        except RecursionError:
            raise self.fault(key, "references in a circle", "a value") from None

    def plain(self, given: Any, key: str) -> Any:
        """The value with its references followed, as far as it is plain."""
        if isinstance(given, str) and given.startswith("@") and given[1:] != key:
            return self.value(given[1:])
        if isinstance(given, str) and given.startswith("$"):
            try:
                return ast.literal_eval(given[1:])
            except (ValueError, SyntaxError) as error:
                raise self.fault(key, given, "a value; expressions are not run") from error
        if isinstance(given, Mapping):
            return {name: self.plain(value, key) for name, value in given.items()}
        return [self.plain(value, key) for value in given] if isinstance(given, list) else given

    def transforms(self, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Names and raw settings of a chain's transforms that are not disabled."""
        chain = self.raw.get(key, {})
        for entry in chain.get("transforms", ()) if isinstance(chain, Mapping) else ():
            if self.plain(entry.get("_disabled_"), key) is not True:
                yield str(entry.get(TARGET, "")).rpartition(".")[2], entry

    def fault(self, key: str, seen: object, expected: str) -> BundleError:
        """The refusal of what stands under a key."""
        return BundleError(
            "The MONAI bundle holds what cannot be taken over.",
            where=f"{self.path}: {key}",
            seen=seen,
            expected=expected,
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; raises `BundleError` naming the file."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError("The MONAI bundle cannot be read.", where=path, seen=error) from error
