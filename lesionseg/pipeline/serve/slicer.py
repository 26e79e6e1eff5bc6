"""As much of MONAI Label's interface as 3D Slicer's plug-in needs to segment a loaded volume.

The plug-in asks `/info/`, sends the volume and asks `/infer/`: until 2025 by the key of a
`/session/`, since then by the volume's name in the `/datastore/`.
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
MAX_SCANS, SCAN_SECONDS = 32, 3600.0
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
    predicted: Callable[..., Awaitable[tuple[str, bytes]]],
) -> APIRouter:
    """The routes; what they share with REST is handed in.

    Scans stay for the requests that follow: few, and none for longer than an hour.
    """
    router, scans = APIRouter(), dict[str, Path]()  # the oldest first
    Folder = Annotated[Path, Depends(new_folder)]

    def find(key: str) -> Path:
        if key not in scans or not scans[key].is_dir():
            raise HTTPException(404, "The image is gone: load it again in 3D Slicer and press Run.")
        return scans[key]

    def by_name(request: Request, image: str) -> str:
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
        key = by_name(request, image) if image else f"session {session}"
        if key in scans and scans[key].is_dir():  # two people's scans may have the same name
            raise HTTPException(409, "A scan of this name waits already. Rename the volume.")
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
        scan = find(f"session {session_id}" if session_id else by_name(request, image))
        if not session_id:  # it leaves with this request: the next of its name is another scan
            scan = scan.rename(folder / "scan")
        name, mask = await predicted(request, scan, "mask")
        end, params = uuid.uuid4().hex, json.dumps({"label_names": labels})
        head = _RESULT.format(end=end, params=params, name=name).encode()
        body = head + mask + f"\r\n--{end}--\r\n".encode()
        return Response(body, media_type=f"multipart/form-data; boundary={end}")

    return router
