"""The part of MONAI Label's interface that 3D Slicer's plug-in needs to segment a loaded volume.

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
_RESULT = (
    '--{end}\r\nContent-Disposition: form-data; name="params"\r\n'
    "Content-Type: application/json\r\n\r\n{params}\r\n"
    '--{end}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
)


class KeptScans:
    """The scans that 3D Slicer has sent for a later request, by key, the oldest first.

    At most `MAX_SCANS` are kept, each for at most `SCAN_SECONDS`.
    """

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}

    def find(self, key: str) -> Path:
        """Return the folder of a scan. Raise `HTTPException` 404 if it is not kept (any more)."""
        if key not in self._folders or not self._folders[key].is_dir():
            raise HTTPException(
                404, "The image was removed. Load it again in 3D Slicer and press Run."
            )
        return self._folders[key]

    def keep(self, key: str, folder: Path) -> None:
        """Keep the scan in `folder` after its request, and remove the oldest one if necessary.

        The folder gets another name.

        Raises:
            HTTPException: If another scan is kept under the same key (status 409).
        """
        # scans that were predicted or removed leave their keys, which must not count
        self._folders = {k: kept for k, kept in self._folders.items() if kept.is_dir()}
        if key in self._folders:
            # scans of two people may have the same name
            raise HTTPException(409, "A scan with this name is already waiting. Rename the volume.")
        if len(self._folders) >= MAX_SCANS:
            shutil.rmtree(self._folders.pop(next(iter(self._folders))), ignore_errors=True)
        kept = folder.rename(f"{folder}-kept")
        self._folders[key] = kept
        asyncio.get_running_loop().call_later(SCAN_SECONDS, shutil.rmtree, kept, True)


def slicer_router(
    labels: Mapping[str, int],
    new_folder: Callable[..., Any],
    receive: Callable[[Request, Path], Awaitable[Any]],
    predict: Callable[..., Awaitable[ServerReply]],
) -> APIRouter:
    """Make the routes for 3D Slicer. Scans are kept between requests in `KeptScans`.

    The scan of a session stays for further predictions. One that is sent with the name of an image
    is removed by its prediction, so that the name can be used again.

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
        about = {"description": _ABOUT, "version": __version__, "labels": labels}
        model = {"type": "segmentation", "config": {}, **about}
        return {"name": MODEL, "models": {MODEL: model}, **about}

    @router.put("/datastore/")
    @router.put("/session/")
    async def add(request: Request, folder: Folder, image: str = "") -> dict[str, str]:
        await receive(request, folder)
        session = uuid.uuid4().hex
        key = _key_of_name(request, image) if image else _key_of_session(session)
        scans.keep(key, folder)
        return {"image": image, "session_id": session}

    @router.get("/session/{key}")
    async def session(key: str) -> dict[str, str]:
        return {"name": scans.find(_key_of_session(key)).name}

    @router.post(f"/infer/{MODEL}")
    async def infer(
        request: Request, folder: Folder, image: str = "", session_id: str = ""
    ) -> Response:
        key = _key_of_session(session_id) if session_id else _key_of_name(request, image)
        scan = scans.find(key)
        if session_id:
            scan = shutil.copytree(scan, folder / "scan", copy_function=os.link)
        else:
            scan = scan.rename(folder / "scan")
        return _mask_response(await predict(request, scan, "mask"), labels)

    return router


def _key_of_name(request: Request, image: str) -> str:
    """Return the key of a named image. It differs between clients."""
    return f"{request.client.host if request.client else ''} {image}"


def _key_of_session(session: str) -> str:
    """Return the key of the volume of a session."""
    return f"session {session}"


def _mask_response(answer: ServerReply, labels: Mapping[str, int]) -> Response:
    """Return a mask, its labels and warning as the multipart form that the plug-in expects."""
    end = uuid.uuid4().hex
    params: dict[str, Any] = {"label_names": labels}
    if answer.warning:
        params["warning"] = answer.warning
    head = _RESULT.format(end=end, params=json.dumps(params), name=answer.name).encode()
    body = head + answer.content + f"\r\n--{end}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={end}")
