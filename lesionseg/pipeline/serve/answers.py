"""The prediction of an uploaded scan, as files."""

import io
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.errors import ContentError, DatasetError, LesionsegError, ReadError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import result_suffix
from lesionseg.pipeline.serve.uploads import CASE
from lesionseg.report.inputs.case_images import Scene
from lesionseg.report.viewer import viewer_data


@dataclass(frozen=True)
class Answer:
    """The files of a prediction by name, `scan_mask.nii.gz` and so on, and what was counted.

    `view`: what the page shows, where that was asked for; see `viewer_data`.
    """

    files: Mapping[str, bytes]
    n_candidates: int
    n_accepted: int
    view: Mapping[str, Any] | None = None

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
    """Predicts scans.

    What goes wrong with a scan is raised as a `LesionsegError` that names no file of the server's.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def answer(
        self,
        folder: Path,
        halt: threading.Event,
        *,
        suffix: str | None = None,
        with_view: bool = False,
    ) -> Answer:
        """Predict the one scan in `folder`; `suffix` is the masks' format, else the scan's own.

        `halt` ends it after the next batch of tiles with `ReadError`.
        """
        try:
            return self._answer(folder, halt, suffix, with_view)
        except LesionsegError as error:
            raise _without_path(error, folder) from error
        except MemoryError as error:
            raise ContentError("The scan needs more memory than the server has.") from error
        except Exception as error:  # a damaged file may make any library raise anything
            raise ReadError("The scan cannot be predicted.", seen=type(error).__name__) from error

    def _answer(
        self, folder: Path, halt: threading.Event, suffix: str | None, with_view: bool
    ) -> Answer:
        plan = self.predictor.plan
        cases = find_images(folder, len(plan.channel_names))
        if len(cases) != 1:
            raise DatasetError("Send one scan at a time.", seen=f"{len(cases)} scans")
        files = replace(cases[0], missing=())  # files come in order, so none may be left out
        volume = self.predictor.scans.read(files)
        _go_on(halt)
        prediction = self.predictor.predict_volume(volume, CASE, on_tile=lambda *_: _go_on(halt))
        mask_suffix = suffix or result_suffix(files.images[0], plan.dims)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as output:
            write_prediction(Path(output), prediction, suffix=mask_suffix, like=files.images[0])
            written = {p.name: p.read_bytes() for p in sorted(Path(output).iterdir())}
        accepted = sum(c.accepted for c in prediction.candidates)
        scene = Scene(volume.array[0], volume.geometry, prediction=prediction)
        view = viewer_data(scene) if with_view else None
        return Answer(written, len(prediction.candidates), accepted, view)


def _go_on(halt: threading.Event) -> None:
    if halt.is_set():
        raise ReadError("The request was given up.")


def _without_path(error: LesionsegError, folder: Path) -> LesionsegError:
    """The same error, our folder's path cut out of what it says."""
    texts: dict[str, Any] = {}
    for name in ("what", "where", "seen", "expected", "remedy"):
        value = getattr(error, name)
        text = "" if value is None else str(value)
        text = text.replace(str(folder.resolve()), "").replace(str(folder), "")
        texts[name] = text.lstrip("/\\") or None
    what = texts.pop("what") or "The scan cannot be predicted."
    return type(error)(what, **texts)
