"""The part of MONAI Label's interface that 3D Slicer's plug-in needs to segment a loaded volume.

The plug-in requests `/info/`, sends the volume and requests `/infer/`. Until 2025 it named the
volume by the key of a `/session/`, since then by the volume's name in the `/datastore/`.
"""

import asyncio
import json
import shutil
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from lesionseg import __version__

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


def slicer_router(
    labels: Mapping[str, int],
    new_folder: Callable[..., Any],
    receive: Callable[[Request, Path], Awaitable[None]],
    predict: Callable[..., Awaitable[tuple[str, bytes]]],
) -> APIRouter:
    """Make the routes for 3D Slicer.

    A scan is kept for the next request, at most `MAX_SCANS` of them and for `SCAN_SECONDS`.

    Args:
        labels: value of each label by name.
        new_folder: a dependency of FastAPI: a folder for one request.
        receive: writes the scan of a request into a folder.
        predict: predicts the scan in a folder and returns name and content of a file.
    """
    router = APIRouter()
    scans: dict[str, Path] = {}  # the oldest first
    Folder = Annotated[Path, Depends(new_folder)]

    def find(key: str) -> Path:
        if key not in scans or not scans[key].is_dir():
            raise HTTPException(
                404, "The image was removed. Load it again in 3D Slicer and press Run."
            )
        return scans[key]

    def key_of_name(request: Request, image: str) -> str:
        """Return the key in `scans` of a named image. It differs between clients."""
        return f"{request.client.host if request.client else ''} {image}"

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
        key = key_of_name(request, image) if image else f"session {session}"
        if key in scans and scans[key].is_dir():  # two people's scans may have the same name
            raise HTTPException(409, "A scan with this name is already waiting. Rename the volume.")
        if len(scans) >= MAX_SCANS:
            shutil.rmtree(scans.pop(next(iter(scans))), ignore_errors=True)
        scans[key] = folder.rename(f"{folder}-kept")
        asyncio.get_running_loop().call_later(SCAN_SECONDS, shutil.rmtree, scans[key], True)
        return {"image": image, "session_id": session}

    @router.get("/session/{key}")
    async def session(key: str) -> dict[str, str]:
        return {"name": find(f"session {key}").name}

    @router.post(f"/infer/{MODEL}")
    async def infer(
        request: Request, folder: Folder, image: str = "", session_id: str = ""
    ) -> Response:
        scan = find(f"session {session_id}" if session_id else key_of_name(request, image))
        if not session_id:  # the scan is removed, so that the name can be used again
            scan = scan.rename(folder / "scan")
        name, mask = await predict(request, scan, "mask")
        end = uuid.uuid4().hex
        params = json.dumps({"label_names": labels})
        head = _RESULT.format(end=end, params=params, name=name).encode()
        body = head + mask + f"\r\n--{end}--\r\n".encode()
        return Response(body, media_type=f"multipart/form-data; boundary={end}")

    return router
