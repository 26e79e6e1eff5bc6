"""As much of MONAI Label's interface as 3D Slicer's plug-in needs to segment a loaded volume.

The plug-in asks `/info/`, sends the volume to `/session/`, and asks `/infer/` by session; others
may send it to `/datastore/`, which is always empty to whoever lists it. All keys are made here and
cannot be guessed, so that nobody gets the mask of another's scan.
"""

import json
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from lesionseg import __version__
from lesionseg.pipeline.serve.answers import Answer, Answerer
from lesionseg.pipeline.serve.turns import Turns, form_of, uploads_in
from lesionseg.pipeline.serve.uploads import ServeLimits, UploadStore, scratch, store
from lesionseg.plan.plan import Plan

MODEL = "lesionseg"
_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")
Output = Literal["image", "json", "all"]


def label_router(
    answerer: Answerer, uploads: UploadStore, turns: Turns, limits: ServeLimits
) -> APIRouter:
    """The routes; uploaded volumes wait in `uploads` for the requests that follow."""
    router, plan = APIRouter(), answerer.predictor.plan

    async def put(request: Request, field: str) -> str:
        # a name that a client gives (`image=`) is no key: two may call their scans the same
        key = uuid.uuid4().hex
        async with form_of(request, limits.max_files) as form:
            await run_in_threadpool(uploads.put, key, uploads_in(form, field), limits)
        return key

    @router.get("/info/")
    async def info() -> dict[str, Any]:
        return app_info(plan)

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
    def session(key: str) -> dict[str, str]:
        if uploads.get(key) is None:
            raise HTTPException(404, "There is no such session, or no longer.")
        return {"name": key}

    @router.delete("/session/{key}")
    def remove_session(key: str) -> dict[str, str]:
        if not uploads.remove(key):
            raise HTTPException(404, "There is no such session, or no longer.")
        return {"name": key}

    @router.post("/infer/{model}", response_class=Response)
    async def infer(
        request: Request,
        model: str,
        image: str = "",
        session_id: str = "",
        output: Output = "all",
    ) -> Response:
        if model != MODEL:
            raise HTTPException(404, f"There is no such model; there is {MODEL}.")
        async with scratch(uploads.home) as folder:
            async with form_of(request, limits.max_files) as form:
                suffix = _result_suffix(form.get("params"), plan)
                sent = uploads_in(form, "file")
                if sent:
                    await run_in_threadpool(store, sent, folder, limits)
            stored = await run_in_threadpool(uploads.get, session_id or image)
            scan = folder if sent else stored
            if scan is None:
                raise HTTPException(404, _NO_IMAGE)
            answer = await turns.take(
                request, lambda halt: answerer.answer(scan, halt, suffix=suffix)
            )
        return _response(answer, plan, output)

    return router


def app_info(plan: Plan) -> dict[str, Any]:
    """What MONAI Label's `/info/` says, for an application of one model."""
    labels = dict(zip(plan.label_names, plan.label_values, strict=True))
    model = {
        "type": "segmentation",
        "labels": labels,
        "dimension": plan.dims,
        "description": "lesionseg: for research use only, no medical device",
        "config": {},
    }
    return {
        "name": "lesionseg",
        "description": "Lesions in scans; for research use only, no medical device",
        "version": __version__,
        "labels": list(labels),
        "models": {MODEL: model},
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": _EMPTY,
    }


_NO_IMAGE = (
    "There is no such image, or no longer. Send it to /session/ or /datastore/ and ask by the key "
    "in the answer, or send it with this request; in 3D Slicer load the volume again and press Run."
)
_EMPTY: Mapping[str, Any] = {"total": 0, "completed": 0, "label_tags": {}}


def _result_suffix(params: object, plan: Plan) -> str | None:
    """The format that the client wants, where it names one that we write."""
    try:
        wanted = json.loads(params if isinstance(params, str) else "{}").get("result_extension")
    except (ValueError, AttributeError, RecursionError) as error:
        raise HTTPException(422, "params is no JSON object.") from error
    return wanted if wanted in _SUFFIXES and plan.dims == 3 else None


def _response(answer: Answer, plan: Plan, output: Output) -> Response:
    params = {
        "label_names": dict(zip(plan.label_names, plan.label_values, strict=True)),
        "n_candidates": answer.n_candidates,
        "n_accepted": answer.n_accepted,
    }
    name, mask = answer.file("mask")
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


def _part(boundary: str, name: str, kind: str, content: bytes) -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: {kind}\r\n\r\n"
    return head.encode() + content + b"\r\n"
