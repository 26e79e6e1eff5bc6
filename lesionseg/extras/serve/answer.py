"""Answer to a sent scan: mask, candidates, zip or viewer data; warning in a header."""

import base64
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from lesionseg.core import CaseFiles
from lesionseg.errors import ContentError, DatasetError, LesionsegError, ReadError
from lesionseg.host_memory import trim_memory
from lesionseg.inference import Predictor, check_extent, needed_bytes
from lesionseg.io import find_scans, read_geometry, write_prediction
from lesionseg.reporting import NIIVUE, Scene, viewer_data

CASE = "scan"
Result = Literal["mask", "candidates", "all", "view"]
WARNING_HEADER = "X-Lesionseg-Warning"


@dataclass(frozen=True)
class ServerReply:
    """The requested file of a predicted scan.

    Attributes:
        name: Its name.
        content: Its content.
        warning: Sentences about the scan, such as that it is unlike the training scans. Empty if
            there are none.
    """

    name: str
    content: bytes
    warning: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the download: the file name, and the warning if there is one.

        HTTP headers are ASCII, so other characters of the warning are escaped.
        """
        headers = {"Content-Disposition": f'attachment; filename="{self.name}"'}
        if self.warning:
            text = " ".join(self.warning.split())  # a header has one line
            headers[WARNING_HEADER] = text.encode("ascii", "backslashreplace").decode()
        return headers


def predict_scan(
    predictor: Predictor,
    folder: Path,
    result: Result,
    budget: int,
    sent: Sequence[str] = (),
) -> ServerReply:
    """Predict the single scan in a folder, and return the file that the request asks for.

    If the scan needs more memory than `budget`, its probabilities are stored in a temporary file in
    `folder`.

    Args:
        predictor: The model.
        folder: The folder with the scan. A zip of the results may stay in it.
        result: The requested file; see `RESULTS` in `serve.app`.
        budget: The bytes of memory that the scan may use.
        sent: The file names of the channels as the client sent them, for the page.

    Raises:
        ContentError: If the model has no such result, or if the scan needs more memory than
            `budget` even with a temporary file. The scan is then refused before it is decoded.
        LesionsegError: If the scan cannot be predicted. The message names no folder of the server.
    """
    try:
        # predict
        scan = _find_single_scan(folder, len(predictor.plan.channel_names))
        is_large = _is_large(scan, predictor, budget)
        volume = predictor.read(scan)
        # the page shows the volume, so its values must then stay
        prepared = predictor.prepare_volume(volume, CASE, overwrite=result != "view")
        inferred = predictor.infer(prepared, folder=folder if is_large else None)
        del prepared  # the candidates need the memory
        trim_memory()
        prediction = predictor.decide(inferred, CASE)
        warning = " ".join(prediction.warnings)
        # write the results, and return a single file if it was requested
        with TemporaryDirectory(dir=folder) as output:
            write_prediction(Path(output), prediction, like=scan.images[0])
            if result in ("mask", "candidates"):
                written = next(Path(output).glob(f"{CASE}_{result}*"), None)
                if written is None:  # a model that detects writes no mask
                    raise ContentError(f"This model has no {result}. Request result=candidates.")
                return ServerReply(written.name, written.read_bytes(), warning)
            zipped = Path(shutil.make_archive(f"{folder}/{CASE}_all", "zip", output))
        if result == "all":
            return ServerReply(zipped.name, zipped.read_bytes(), warning)
        # the data of the page ("view"): that of the viewer, the zip, the warning, and the channels
        scene = Scene(volume.array[0], volume.geometry, prediction=prediction)
        view = viewer_data(scene, with_slices=not NIIVUE.is_file())
        view["zip"] = base64.b64encode(zipped.read_bytes()).decode()
        view["warning"] = warning
        # the page shows which file is which channel, which matters with several channels only
        channels = predictor.plan.channel_names
        pairs = zip(channels, sent, strict=True) if len(sent) == len(channels) > 1 else ()
        view["channels"] = [{"channel": channel, "file": name} for channel, name in pairs]
        return ServerReply(f"{CASE}_view.json", json.dumps(view).encode(), warning)
    except LesionsegError as error:
        # the message must not name folders of the server
        text = str(error).replace(f"{folder}/", "").replace(str(folder), "the scan")
        raise type(error)(text) from error
    except Exception as error:  # a damaged file, or too little memory for a large one
        raise ReadError(f"The scan cannot be predicted ({type(error).__name__}).") from error


def _is_large(scan: CaseFiles, predictor: Predictor, budget: int) -> bool:
    """Return True if the probabilities of the scan must be in a file, to save memory.

    Only headers are read, because a small compressed file may contain a huge image.

    Args:
        scan: The files of the scan.
        predictor: The model.
        budget: The bytes of memory that the scan may use.

    Raises:
        ContentError: If the scan needs more memory than `budget` even with its probabilities in a
            file.
        GeometryError: If spacing or extent are implausible.
    """
    plan = predictor.plan
    # for a picture that states no pixel size
    pixel_mm = predictor.assumed_pixel_mm if plan.dims == 2 else None
    is_large = False
    # a later channel may be larger than the first one, which is an error only after it is decoded
    for image in scan.images:
        grid = read_geometry(image, pixel_mm=pixel_mm)
        check_extent(grid, plan, where=str(image))
        minimum = needed_bytes(grid, plan, is_on_disk=True)
        if minimum > budget:
            raise ContentError(
                f"The scan needs about {minimum / 1e9:.2g} GB of memory, and this server may use "
                f"{budget / 1e9:.2g} GB (inference.max_memory_gb). Crop the scan, or start the "
                "server with a higher limit."
            )
        is_large |= needed_bytes(grid, plan) > budget
    return is_large


def _find_single_scan(folder: Path, n_channels: int) -> CaseFiles:
    """Return the only scan in the folder of a request. None of its channels counts as missing.

    Raises:
        DatasetError: If the folder has no scan or several scans.
    """
    cases = find_scans(folder, n_channels).cases()
    if len(cases) != 1:
        raise DatasetError(f"Send one scan at a time, not {len(cases)}.")
    # The files are numbered in the order in which they were sent. If one is left out, the numbers
    # do not show which channel it is, so no channel counts as missing and reading reports an error.
    return replace(cases[0], missing=())
