"""Reading the files of a model in a folder or in a zip, with limits of their size.

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

# largest size, and largest ratio of compression: most bits of weights are noise
_WEIGHTS = (2**33, 50)
_TEXT = (2**26, 1100)
# of a damaged member; RuntimeError is that of an encrypted one or of an unknown compression
_READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in a folder or in a zip.

    Attributes:
        root: The model folder. Within a zip, the path of the zip continues with that of the folder.
        archive: The zip. None for a model folder.
    """

    root: Path
    archive: Path | None = None

    def where(self, name: str) -> str:
        """Return the path of one of the model's files, within the zip if there is one."""
        return str(self.root / name)

    def read_bytes(self, name: str) -> bytes:
        """Read one file: weights of at most 8 GiB, JSON or a model card of at most 64 MiB.

        Raise `BundleError` if it is missing, damaged, larger, or if its size in the zip is more
        than so many compressed bytes can contain.
        """
        path = self.root / name
        maximum, ratio = _TEXT if path.suffix in (".json", ".md") else _WEIGHTS
        try:
            if self.archive is None:
                _check_bytes(path, path.stat().st_size, maximum)
                return path.read_bytes()
            with zipfile.ZipFile(self.archive) as archive:
                info = archive.getinfo(path.relative_to(self.archive).as_posix())
                maximum = min(maximum, largest_content(info.compress_size, ratio))
                _check_bytes(path, info.file_size, maximum)
                return archive.read(info)
        except (KeyError, FileNotFoundError) as error:
            raise BundleError(f"{path}: this file is missing. Export the model again.") from error
        except _READ_ERRORS as error:
            raise BundleError(f"{path}: cannot be read ({error}). Copy it again.") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of at most 64 MiB. Raise `BundleError` for anything else."""
        try:
            content = json.loads(self.read_bytes(name).decode("utf-8-sig"))
            if isinstance(content, dict):
                return content
            raise ValueError(f"it contains a {type(content).__name__}")
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{self.where(name)}: cannot be read as a JSON object: {error}. Export the model "
                "again."
            ) from error


def read_model_text(path: Path) -> str:
    """Read a text of a bundle, with the limits of `ModelFiles`. Damaged characters are replaced."""
    return ModelFiles(path.parent).read_bytes(path.name).decode("utf-8", "replace")


def find_archive(path: Path) -> Path | None:
    """Return the zip that a path names or leads into, the innermost one.

    Return None if neither the path nor a folder on it is an existing `.zip` file.
    """
    return next((p for p in (path, *path.parents) if p.suffix == ".zip" and p.is_file()), None)


def list_archive(archive: Path) -> list[str]:
    """Return the names of the members of a zip.

    Raises:
        ReadError: If the zip cannot be read.
        BundleError: If a member might be unpacked outside the target folder.
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
    """Raise `BundleError` if a file has more bytes than possible."""
    if n_bytes > maximum:
        raise BundleError(
            f"{path}: the file has {n_bytes} bytes, but at most {maximum} are possible. Export the "
            "model again."
        )


def _is_outside(name: str) -> bool:
    """Return True if a member of an archive might be unpacked outside the target folder.

    Absolute paths, a colon in the first part (a drive) and any `..` count, on every system.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts:
        return False
    has_drive = ":" in parts[0]  # on Windows
    return name.startswith(("/", "\\")) or has_drive or ".." in parts
