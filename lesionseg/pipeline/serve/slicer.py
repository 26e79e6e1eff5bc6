"""As much of MONAI Label's interface as 3D Slicer's plug-in needs to segment a loaded volume.

The plug-in asks `/info/`, sends the volume to `/session/`, and asks `/infer/` by session; others
may send it to `/datastore/`, which is always empty to whoever lists it.
"""

import json
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from lesionseg import __version__
from lesionseg.inference.predictor import Predictor
from lesionseg.pipeline.serve.uploads import InferenceQueue, ServeLimits, Sessions, store_form

MODEL = "lesionseg"
_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")
_EMPTY = {"total": 0, "completed": 0, "label_tags": {}}
Output = Literal["image", "json", "all"]


def slicer_router(
    predictor: Predictor,
    answer: Callable[..., Any],
    queue: InferenceQueue,
    sessions: Sessions,
    limits: ServeLimits,
) -> APIRouter:
    """The routes; volumes that were sent wait in `sessions` for the requests that follow."""
    router, plan = APIRouter(), predictor.plan
    labels = dict(zip(plan.label_names, plan.label_values, strict=True))

    async def put(request: Request, field: str) -> str:
        # a name that a client gives (`image=`) is no key: two may call their scans the same
        key, folder = sessions.new()
        await store_form(request, field, folder, limits)
        return key

    @router.get("/info/")
    async def info() -> dict[str, Any]:
        about = "lesionseg: for research use only, no medical device"
        model = {"type": "segmentation", "labels": labels, "dimension": plan.dims, "config": {}}
        return {
            "name": "lesionseg",
            "description": about,
            "version": __version__,
            "labels": list(labels),
            "models": {MODEL: {**model, "description": about}},
            **{key: {} for key in ("trainers", "strategies", "scoring", "train_stats")},
            "datastore": _EMPTY,
        }

    @router.get("/datastore/")
    async def datastore(output: str = "stats") -> dict[str, Any]:
        return {"objects": {}} if output == "all" else {**_EMPTY}

    @router.put("/datastore/")
    async def add_image(request: Request) -> dict[str, str]:
        return {"image": await put(request, "file")}

    @router.put("/session/")
    async def add_session(request: Request) -> dict[str, Any]:
        key = await put(request, "files")
        return {"session_id": key, "session_info": {"name": key}}

    @router.get("/session/{key}")
    async def session(key: str) -> dict[str, str]:
        sessions.get(key)
        return {"name": key}

    @router.delete("/session/{key}")
    async def remove_session(key: str) -> dict[str, str]:
        sessions.remove(key)
        return {"name": key}

    @router.post("/infer/{model}", response_class=Response)
    async def infer(
        request: Request, model: str, image: str = "", session_id: str = "", output: Output = "all"
    ) -> Response:
        if model != MODEL:
            raise HTTPException(404, f"There is no such model; there is {MODEL}.")
        with tempfile.TemporaryDirectory() as scan:
            folder = Path(scan)
            if not await store_form(request, "file", folder, limits):
                folder = sessions.get(session_id or image)
            form = await request.form()
            try:
                suffix = json.loads(str(form.get("params") or "{}")).get("result_extension")
            except (ValueError, AttributeError, RecursionError) as error:
                raise HTTPException(422, "params is no JSON object.") from error
            suffix = suffix if suffix in _SUFFIXES and plan.dims == 3 else None
            work = partial(answer, predictor, folder, suffix=suffix)
            found = await queue.run(request, work)
        counts = {"n_candidates": found.n_candidates, "n_accepted": found.n_accepted}
        params = {"label_names": labels, **counts}
        name, mask = found.file("mask")
        if output == "json":
            return JSONResponse(params)
        if output == "image":
            return Response(mask, media_type="application/octet-stream")
        boundary = uuid.uuid4().hex
        parts = [
            _part(boundary, 'name="params"', "application/json", json.dumps(params).encode()),
            _part(boundary, f'name="image"; filename="{name}"', "application/octet-stream", mask),
            f"--{boundary}--\r\n".encode(),
        ]
        return Response(b"".join(parts), media_type=f"multipart/form-data; boundary={boundary}")

    return router


def _part(boundary: str, name: str, kind: str, content: bytes) -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: {kind}\r\n\r\n"
    return head.encode() + content + b"\r\n"
