"""As much of MONAI Label's interface as 3D Slicer's plug-in needs to segment a loaded volume.

The plug-in asks `/info/`, sends the volume to `/session/`, and asks `/infer/` by session; others
may send it to `/datastore/`, which is always empty to whoever lists it.
"""

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from lesionseg import __version__
from lesionseg.pipeline.serve.uploads import Sessions, store_form

MODEL = "lesionseg"
_ABOUT = "lesionseg: for research use only, no medical device"
_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")
_EMPTY = {"total": 0, "completed": 0, "label_tags": {}}


def slicer_router(
    labels: Mapping[str, int],
    dims: int,
    predicted: Callable[..., Awaitable[Any]],
    sessions: Sessions,
    max_bytes: int,
) -> APIRouter:
    """The routes; volumes that were sent wait in `sessions` for the requests that follow."""
    router = APIRouter()

    @router.get("/info/")
    async def info() -> dict[str, Any]:
        model = {"type": "segmentation", "labels": labels, "dimension": dims, "config": {}}
        return {
            "name": "lesionseg",
            "description": _ABOUT,
            "version": __version__,
            "labels": list(labels),
            "models": {MODEL: {**model, "description": _ABOUT}},
            **{key: {} for key in ("trainers", "strategies", "scoring", "train_stats")},
            "datastore": _EMPTY,
        }

    @router.get("/datastore/")
    async def datastore(output: str = "stats") -> dict[str, Any]:
        return {"objects": {}} if output == "all" else _EMPTY

    @router.put("/datastore/")
    @router.put("/session/")
    async def add(request: Request) -> dict[str, Any]:
        is_session = request.url.path == "/session/"
        # a name that a client gives (`image=`) is no key: two may call their scans the same
        key, folder = sessions.new()
        await store_form(request, "files" if is_session else "file", folder, max_bytes)
        return {"session_id": key, "session_info": {"name": key}} if is_session else {"image": key}

    @router.get("/session/{key}")
    async def session(key: str) -> dict[str, str]:
        sessions.get(key)
        return {"name": key}

    @router.delete("/session/{key}")
    async def remove_session(key: str) -> dict[str, str]:
        sessions.remove(key)
        return {"name": key}

    @router.post("/infer/{model}")
    async def infer(
        request: Request, model: str, image: str = "", session_id: str = ""
    ) -> Response:
        if model != MODEL:
            raise HTTPException(404, f"There is no such model; there is {MODEL}.")
        with TemporaryDirectory() as scan:
            folder = Path(scan)
            if not await store_form(request, "file", folder, max_bytes):
                folder = sessions.get(session_id or image)
            form = await request.form()
            try:
                suffix = json.loads(str(form.get("params") or "{}")).get("result_extension")
            except (ValueError, AttributeError, RecursionError) as error:
                raise HTTPException(422, "params is no JSON object.") from error
            suffix = suffix if suffix in _SUFFIXES and dims == 3 else None
            found = await predicted(request, folder, suffix=suffix)
        counts = {"n_candidates": found.n_candidates, "n_accepted": found.n_accepted}
        about = json.dumps({"label_names": labels, **counts}).encode()
        (name, mask), boundary = found.file("mask"), uuid.uuid4().hex
        body = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; {field}\r\n".encode()
            + f"Content-Type: {kind}\r\n\r\n".encode()
            + content
            + b"\r\n"
            for field, kind, content in (
                ('name="params"', "application/json", about),
                (f'name="image"; filename="{name}"', "application/octet-stream", mask),
            )
        )
        end = f"--{boundary}--\r\n".encode()
        return Response(body + end, media_type=f"multipart/form-data; boundary={boundary}")

    return router
