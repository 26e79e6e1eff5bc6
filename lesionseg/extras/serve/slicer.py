"""3D Slicer's plug-in (MONAI Label routes /info, /infer): number and lifetime of kept scans.

It is the part of the interface that the plug-in needs to segment a loaded volume.

The plug-in requests `/info/`, sends the volume and requests `/infer/`. Until 2025 it named the
volume by the key of a `/session/`, since then by the volume's name in the `/datastore/`.
"""

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from lesionseg.extras.serve.answer import ServerReply
from lesionseg.version import __version__

MODEL = "lesionseg"
MAX_SCANS = 32
SCAN_SECONDS = 3600.0
_ABOUT = "lesionseg: for research use only, no medical device"
# the answer as a multipart form: JSON in the field params, then the mask in the field image
_RESULT = (
    '--{end}\r\nContent-Disposition: form-data; name="params"\r\n'
    "Content-Type: application/json\r\n\r\n{params}\r\n"
    '--{end}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
)


class KeptScans:
    """The scans that 3D Slicer has sent for a later request.

    Slicer sends a volume and requests its prediction in two requests. The folders of the scans are
    stored by key, the oldest first. At most `MAX_SCANS` scans are stored, each for at most
    `SCAN_SECONDS`.
    """

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}

    def find(self, key: str) -> Path:
        """Return the folder of the scan with this key.

        Raises:
            HTTPException: If no scan has this key, or the scan was already removed (status 404).
        """
        if key not in self._folders or not self._folders[key].is_dir():
            raise HTTPException(
                404, "The image was removed. Load it again in 3D Slicer and press Run."
            )
        return self._folders[key]

    def keep(self, key: str, folder: Path) -> None:
        """Store the scan of a request under a key, for a later request.

        The scan is removed after `SCAN_SECONDS`. The folder is renamed, because the server removes
        the folder of a request after its answer. If too many scans are stored, the oldest one is
        removed.

        Args:
            key: The key, see `_key_of_name` and `_key_of_session`.
            folder: The folder of the request with the scan.

        Raises:
            HTTPException: If another scan is stored under the same key (status 409).
        """
        # scans that were predicted or removed leave their keys, which must not count
        self._folders = {k: stored for k, stored in self._folders.items() if stored.is_dir()}
        if key in self._folders:
            # scans of two people may have the same name
            raise HTTPException(409, "A scan with this name is already waiting. Rename the volume.")
        if len(self._folders) >= MAX_SCANS:
            oldest_key = next(iter(self._folders))
            shutil.rmtree(self._folders.pop(oldest_key), ignore_errors=True)
        stored_folder = folder.rename(f"{folder}-kept")
        self._folders[key] = stored_folder
        # True: ignore errors, because the scan may have been removed before
        asyncio.get_running_loop().call_later(SCAN_SECONDS, shutil.rmtree, stored_folder, True)


def slicer_router(
    labels: Mapping[str, int],
    new_folder: Callable[..., Any],
    receive: Callable[[Request, Path], Awaitable[Any]],
    predict: Callable[..., Awaitable[ServerReply]],
) -> APIRouter:
    """Make the routes of MONAI Label that 3D Slicer requests.

    `KeptScans` stores the scans between the requests. Slicer until 2025 names a scan by a session.
    Such a scan stays stored for further predictions. Later versions name a scan by the name of its
    image. Such a scan is removed by its prediction, so that the name can be used again.

    Args:
        labels: Value of each label by name.
        new_folder: A dependency of FastAPI that yields a folder for one request.
        receive: Writes the scan of a request into a folder.
        predict: Predicts the scan in a folder and returns a file.
    """
    router = APIRouter()
    scans = KeptScans()
    Folder = Annotated[Path, Depends(new_folder)]

    @router.get("/info/")
    async def info() -> dict[str, Any]:
        """Return the name of the model and its labels, which the plug-in shows."""
        about = {"description": _ABOUT, "version": __version__, "labels": labels}
        model = {"type": "segmentation", "config": {}, **about}
        return {"name": MODEL, "models": {MODEL: model}, **about}

    @router.put("/datastore/")
    @router.put("/session/")
    async def add(request: Request, folder: Folder, image: str = "") -> dict[str, str]:
        """Receive a volume, and store it under its name or, without one, under a new session."""
        await receive(request, folder)
        session = uuid.uuid4().hex
        key = _key_of_name(request, image) if image else _key_of_session(session)
        scans.keep(key, folder)
        return {"image": image, "session_id": session}

    @router.get("/session/{key}")
    async def session(key: str) -> dict[str, str]:
        """Return the name of the folder of a session's volume, or 404 if it was removed."""
        return {"name": scans.find(_key_of_session(key)).name}

    @router.post(f"/infer/{MODEL}")
    async def infer(
        request: Request, folder: Folder, image: str = "", session_id: str = ""
    ) -> Response:
        """Predict a volume that was sent before, and return its mask.

        A volume of a session stays stored. A volume that is named by its image is moved into the
        folder of this request, which is removed after the answer.
        """
        key = _key_of_session(session_id) if session_id else _key_of_name(request, image)
        scan = scans.find(key)
        if session_id:
            # hard links to the files, so that the stored scan stays without a copy
            scan = shutil.copytree(scan, folder / "scan", copy_function=os.link)
        else:
            scan = scan.rename(folder / "scan")
        return _mask_response(await predict(request, scan, "mask"), labels)

    return router


def _key_of_name(request: Request, image: str) -> str:
    """Return the key of a scan that is named by its image. Equal names of two clients differ."""
    return f"{request.client.host if request.client else ''} {image}"


def _key_of_session(session: str) -> str:
    """Return the key of a scan that is named by its session."""
    return f"session {session}"


def _mask_response(answer: ServerReply, labels: Mapping[str, int]) -> Response:
    """Return the answer with a mask, as the multipart form that Slicer's plug-in expects.

    The form has the label values and the warning as JSON, and the mask as a file.
    """
    boundary = uuid.uuid4().hex  # a text that does not occur in the mask
    params: dict[str, Any] = {"label_names": labels}
    if answer.warning:
        params["warning"] = answer.warning
    head = _RESULT.format(end=boundary, params=json.dumps(params), name=answer.name).encode()
    body = head + answer.content + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
