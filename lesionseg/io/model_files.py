"""Files of a model in a folder or zip: size limits, unsafe names in a zip.

Zips are read member by member. No member is written under the name that the zip states.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lesionseg.errors import BundleError
from lesionseg.io.limits import convert_read_errors, largest_content
from lesionseg.io.text import require_unique_keys

# largest size, and largest ratio of compression: most bits of weights are noise
_WEIGHTS = (2**33, 50)
_TEXT = (2**26, 1100)
# of a damaged member; RuntimeError is that of an encrypted one or of an unknown compression
_READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in a folder or in a zip, read in the same way from both.

    Attributes:
        root: The model folder. For a folder in a zip, `FILE.zip/path/of/the/folder`.
        archive: The zip. None if the model folder is on the disk.
    """

    root: Path
    archive: Path | None = None

    def where(self, name: str) -> str:
        """Return the path of a file of the model for messages, such as `FILE.zip/a/plan.json`."""
        return str(self.root / name)

    def read_bytes(self, name: str) -> bytes:
        """Read the content of one file, after a check of its size.

        A JSON file or model card (`.md`) may have at most 64 MiB, any other file, such as weights,
        8 GiB. A file in a zip may not be larger than its compressed bytes can contain, so that a
        small zip cannot exhaust the memory. Raise `BundleError` if the file is missing, damaged or
        too large.
        """
        path = self.root / name
        maximum, ratio = _TEXT if path.suffix in (".json", ".md") else _WEIGHTS
        try:
            if self.archive is None:
                _check_bytes(path, path.stat().st_size, maximum)
                return path.read_bytes()
            with zipfile.ZipFile(self.archive) as zip_file:
                info = zip_file.getinfo(path.relative_to(self.archive).as_posix())
                maximum = min(maximum, largest_content(info.compress_size, ratio))
                _check_bytes(path, info.file_size, maximum)
                return zip_file.read(info)
        except (KeyError, FileNotFoundError) as error:
            raise BundleError(f"{path}: this file is missing. Export the model again.") from error
        except _READ_ERRORS as error:
            raise BundleError(f"{path}: cannot be read ({error}). Copy it again.") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a file of at most 64 MiB that contains a JSON object, as a dictionary.

        Raise `BundleError` if the file is missing or damaged, or contains anything else.
        """
        try:
            text = self.read_bytes(name).decode("utf-8-sig")
            content = json.loads(text, object_pairs_hook=require_unique_keys)
            if isinstance(content, dict):
                return content
            raise ValueError(f"it contains a {type(content).__name__}")
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{self.where(name)}: cannot be read as a JSON object: {error}. Export the model "
                "again."
            ) from error


def read_model_text(path: Path) -> str:
    """Read a text file of a bundle, such as the model card, with the size limits of `ModelFiles`.

    Bytes that are not UTF-8 are replaced by U+FFFD.
    """
    return ModelFiles(path.parent).read_bytes(path.name).decode("utf-8", "replace")


def find_archive(path: Path) -> Path | None:
    """Return the zip of a path such as `FILE.zip` or `FILE.zip/runs/a`.

    Return None if neither the path nor one of its parents is an existing `.zip` file.
    """
    return next((p for p in (path, *path.parents) if p.suffix == ".zip" and p.is_file()), None)


def list_archive(archive: Path) -> list[str]:
    """Return the names of the files and folders in a zip, after a check that they are safe.

    Raises:
        ReadError: If the zip cannot be read.
        BundleError: If a name leads outside the folder into which the zip would be unpacked.
    """
    with convert_read_errors(archive), zipfile.ZipFile(archive) as file:
        names = file.namelist()
    unsafe = list(filter(_is_outside, names))
    if unsafe:
        raise BundleError(
            f"{archive}: the archive names a file outside its own folder ({unsafe[0]!r}) and was "
            "not read. Make it again from the model folder."
        )
    return names


def _check_bytes(path: Path, n_bytes: int, maximum: int) -> None:
    """Raise `BundleError` if a file has more than `maximum` bytes. `path` is for the message."""
    if n_bytes > maximum:
        raise BundleError(
            f"{path}: the file has {n_bytes} bytes, but at most {maximum} are possible. Export the "
            "model again."
        )


def _is_outside(name: str) -> bool:
    """Return True if the name of an archive's member leads outside the target folder.

    Such names are absolute paths, paths with a colon in the first part (a drive of Windows), and
    paths that contain `..`. The rule is the same on every system.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts:
        return False
    has_drive = ":" in parts[0]  # on Windows
    return name.startswith(("/", "\\")) or has_drive or ".." in parts
