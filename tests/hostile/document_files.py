"""Hostile JSON, CSV and YAML: documents with other values at some places, and broken text."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors

from lesionseg.models.build import build_network
from lesionseg.plan.fingerprint import ChannelStatistics, Fingerprint, Spread
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from tests.hostile.hostile_file import Files, files, some_of
from tests.hostile.image_files import PICTURE, VOXELS, encoded, nifti

PLAN = Plan(
    dims=3,
    modality="mri",
    channel_names=("T1",),
    label_values=(1,),
    label_names=("lesion",),
    spacing_mm=(1.0, 1.0, 1.0),
    normalisation=(Normalisation("zscore"),),
    tile_shape=(16, 16, 16),
    batch_size=2,
    architecture=Architecture("unet", (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), 1, 2),
    lesion_fraction=0.01,
)
FINGERPRINT = Fingerprint(
    dims=3,
    modality="mri",
    channels=(ChannelStatistics("T1", False, Spread(1, 1, 0, 2), Spread(1, 1, 0, 2), 0.5),),
    shapes=((4, 5, 6),),
    spacings_mm=((1.0, 1.0, 1.0),),
    lesions_per_case=(1,),
    diameters_mm=(3.0,),
    lesion_voxels=(4,),
    lesion_fraction=0.01,
)

VALUES = st.one_of(
    st.sampled_from(("", "..", "/etc/passwd", "a\0b", "\u202e", "x" * 10**5, "漢" * 100)),
    st.sampled_from((None, True, 10**9, 10**30, float("nan"), float("inf"), [[]], [None] * 3)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
)
TEXTS = st.sampled_from(
    (
        b"",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xff\xfe\x00\x01",
        b"\xef\xbb\xbf{}",
        b"[" + b"9" * 10_000 + b"]",
        b'"x"',
        b'{"a": [1, ',
        b'{"a": NaN}',
    )
)
GONE = object()


@st.composite
def documents(draw: st.DrawFn, document: Any) -> bytes:
    """A JSON document that has another value, or none, at one to three places."""
    made = copy.deepcopy(document)
    for place, value in draw(some_of(_places(document), lambda _: st.just(GONE) | VALUES)).items():
        inner = made
        for key in place[:-1]:
            inner = inner[key] if _has(inner, key) else None
        if _has(inner, place[-1]):  # else another change took it away
            inner[place[-1]] = value
            if value is GONE:
                del inner[place[-1]]
    return json.dumps(made).encode()


def _has(node: Any, key: Any) -> bool:
    if isinstance(node, dict):
        return key in node
    return isinstance(node, list) and isinstance(key, int) and key < len(node)


def _places(node: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every value below a node."""
    if not isinstance(node, dict | list):
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (key,)
        yield from ((key, *rest) for rest in _places(value))


def document(name: str, content: Any, beside: Mapping[str, bytes] | None = None) -> Files:
    """Hostile forms of a JSON file."""
    return files(name, documents(content) | TEXTS, beside)


IMAGE, MASK = nifti(), nifti((VOXELS == 50).astype(np.uint8))
PAIR = {"imagesTr/a_0000.nii": IMAGE, "labelsTr/a.nii": MASK}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 5, 5], "iscrowd": 0}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 20, "patient": "p"}],
    "annotations": [
        {**BOX, "segmentation": [[2, 2, 7, 2, 7, 7, 2, 7]]},
        {**BOX, "id": 2, "segmentation": {"counts": [30, 4, 286], "size": [20, 16]}},
        {**BOX, "id": 3, "segmentation": {"counts": "PPYo1", "size": [20, 16]}},
    ],
    "categories": [{"id": 1, "name": "lesion"}],
    "info": {"incomplete_reference": False},
}
NNUNET = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "lesion": 1, "ignore": 2},
    "numTraining": 1,
    "file_ending": ".nii",
}
DATALIST = {
    "training": [{"image": "a.nii", "box": [[3, 3, 2, 2, 2, 2]], "label": [0], "fold": 0}],
    "box_mode": "cccwhd",
    "box_space": "voxel",
    "name": "x",
}
CANDIDATE = {"id": 1, "label": 1, "score": 0.5, "start_vox": [0, 0, 0], "stop_vox": [2, 2, 2]}
CANDIDATES = {
    "schema_version": 1,
    "case": "a",
    "voxel_threshold": 0.5,
    "operating_point": {"name": "score:0.4", "score": 0.4, "chosen_on": None},
    "candidates": [{**CANDIDATE, "centre_mm": [1, 1, 1], "diameter_mm": 2.0, "accepted": True}],
}
SPLITS = {"roles": {"a": "train", "b": "test"}, "group_safe": True, "seed": 0, "note": "x"}
FOLDS = [{"train": ["a"], "val": ["b"]}]
TABLE = {"manifest.csv": b"case,image,reference\na,a.nii,m.nii\n"}
DETECTION = {"dataset.json": b'{"labels": {"0": "n"}, "modalities": {"0": "CT"}}', **PAIR}


def weights() -> bytes:
    """Weights that fit the plan."""
    tensors = build_network(PLAN).state_dict()
    return save_tensors({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})


def _bundles() -> Files:
    """A plan beside good weights, or weights beside a good plan."""
    plan, good = json.loads(PLAN.to_json()), weights()
    broken = files("weights.safetensors", st.just(good), {"plan.json": PLAN.to_json().encode()})
    return document("plan.json", plan, {"weights.safetensors": good}) | broken


CELLS = st.sampled_from(
    (
        *("", "..", ".", ".hidden", "/etc/passwd", "../../x", "a/b", "a\nb", "\u202etxt", "a\0b"),
        *("x" * 300, "漢" * 100, "=cmd|calc", '"', "nan", "inf", "1e999", "-1", "9" * 5000),
    )
) | st.text(max_size=9)


def table(name: str, lines: Sequence[str], beside: Mapping[str, bytes] | None = None) -> Files:
    """Hostile forms of a table of one row: other cells, and text that is no table."""
    names, row = (line.split(",") for line in lines)
    head, whole = lines[0].encode(), "\n".join(lines).encode()
    cells = some_of(names, lambda _: CELLS).map(
        lambda made: [made.get(name, cell) for name, cell in zip(names, row, strict=True)]
    )
    texts = (
        head,
        head + b"," + head + whole.removeprefix(head),
        whole + b'\n"a,b',
        whole + b",,,,,x",
        whole.decode().encode("utf-16"),
        whole + b"\n\xe9",
        whole + b"\n" + b"x" * 10**6,
        whole + whole.removeprefix(head),
        b",".join([b"x"] * 10**4),
        whole + b"\n\0",
        whole.replace(b",", b";"),
    )
    changed = cells.map(lambda made: head + b"\n" + ",".join(made).encode("utf-8", "replace"))
    return files(name, changed | st.sampled_from(texts) | TEXTS, beside)


def _yaml(name: str) -> Files:
    alias = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in pairwise("abcdefghi"))
    texts = (
        ("a: &a [x]\n" + alias).encode(),  # 10⁸ values
        b"a: &a [*a]",
        b"a: !!python/object/apply:os.system [ls]",
        b"? [a]\n: b",
        b"n_found: 2020-13-45",
        b"a:\n\t- b",
        b"1: 2\n_target_: 3",
        b"n_found: " + b"9" * 5000,
        b"_target_: x\ndata:\n  root: y\n" * 9,
    )
    plain = documents({"_target_": "x", "data": {"root": "y"}, "n_found": 3, "title": "z"})
    return files(name, st.sampled_from(texts) | TEXTS | plain)


DOCUMENTS: dict[str, Files] = {
    "nnU-Net dataset.json": document("dataset.json", NNUNET, PAIR),
    "COCO annotations.json": document(
        "annotations.json", COCO, {"images/a.png": encoded(PICTURE, "PNG")}
    ),
    "datalist": document("list.json", DATALIST, {"a.nii": IMAGE}),
    "nnDetection JSON": document("labelsTr/a.json", {"instances": {"1": 0}}, DETECTION),
    "labels.json": document("labels.json", {"1": "x"}, {**TABLE, "a.nii": IMAGE, "m.nii": MASK}),
    "candidates.json": document("a_candidates.json", CANDIDATES),
    "plan.json": document("plan.json", json.loads(PLAN.to_json())),
    "splits.json": document("splits.json", SPLITS) | document("splits.json", FOLDS),
    "fingerprint.json": document("fingerprint.json", json.loads(FINGERPRINT.to_json())),
    "bundle": _bundles(),
    "manifest.csv": table(
        "manifest.csv",
        ("case,image,reference,group,role,fold", "a,a.nii,m.nii,p,train,0"),
        {"a.nii": IMAGE, "m.nii": MASK},
    ),
    "LUNA16 annotations.csv": table(
        "annotations.csv",
        ("seriesuid,coordX,coordY,coordZ,diameter_mm", "a,-2,-2,2,3"),
        {"subset0/a.nii": IMAGE},
    ),
    "predictions.csv": table(
        "predictions.csv",
        (
            "case,status,message,seconds,n_candidates,n_accepted,peak_memory_mb,bundle,input,key",
            "a,done,,1.0,1,1,100,b,i,k",
        ),
    ),
    "study.yaml": _yaml("study.yaml"),
    "config.yaml": _yaml("config.yaml"),
}
