"""One uploaded scan to its mask: the predictor behind a lock."""

import io
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import DatasetError, LesionsegError, ReadError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.formats.volumes import result_suffix
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import write_prediction
from lesionseg.pipeline.serve.uploads import CASE


@dataclass(frozen=True)
class Answer:
    """The files of a prediction by name, `scan_mask.nii.gz` and so on, and what was counted."""

    files: Mapping[str, bytes]
    n_candidates: int
    n_accepted: int

    def file(self, kind: str) -> tuple[str, bytes]:
        """Name and content of one file: `mask`, `instances` or `candidates`."""
        name = next(name for name in self.files if name.startswith(f"{CASE}_{kind}"))
        return name, self.files[name]

    def zipped(self) -> bytes:
        """All files as a zip."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in self.files.items():
                archive.writestr(name, content)
        return buffer.getvalue()


class Answerer:
    """Predicts scans one at a time, whoever asks.

    What goes wrong with a scan is raised as a `LesionsegError` that names no file of the server's.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._lock = threading.Lock()

    def answer(self, folder: Path, *, suffix: str | None = None) -> Answer:
        """Predict the one scan in `folder`; `suffix` is the masks' format, else the scan's own."""
        try:
            return self._answer(folder, suffix)
        except LesionsegError as error:
            raise _without_path(error, folder) from error
        except MemoryError:
            raise
        except Exception as error:  # a damaged file may make any library raise anything
            raise ReadError("The scan cannot be predicted.", seen=type(error).__name__) from error

    def _answer(self, folder: Path, suffix: str | None) -> Answer:
        plan = self.predictor.plan
        cases = find_images(folder, len(plan.channel_names))
        if len(cases) != 1:
            raise DatasetError("Send one scan at a time.", seen=f"{len(cases)} scans")
        files = cases[0]
        with self._lock:
            prediction = self.predictor.predict_volume(self.predictor.scans.read(files), CASE)
        chosen = suffix or result_suffix(files.images[0], plan.dims)
        with tempfile.TemporaryDirectory(prefix="lesionseg-") as output:
            write_prediction(Path(output), prediction, suffix=chosen, like=files.images[0])
            written = {p.name: p.read_bytes() for p in sorted(Path(output).iterdir())}
        accepted = sum(c.accepted for c in prediction.candidates)
        return Answer(written, len(prediction.candidates), accepted)


def _without_path(error: LesionsegError, folder: Path) -> LesionsegError:
    """The same error, our folder's path cut out of what it says."""
    where, own = str(folder), str(folder.resolve())
    texts = {}
    for name in ("what", "where", "seen", "expected", "remedy"):
        value = getattr(error, name)
        text = None if value is None else str(value).replace(own, "").replace(where, "")
        texts[name] = text.lstrip("/\\") if text else None
    return type(error)(
        texts["what"] or "The scan cannot be predicted.",
        where=texts["where"],
        seen=texts["seen"],
        expected=texts["expected"],
        remedy=texts["remedy"],
    )
