"""Candidates from boxes, from voxels, or from both, on the file's grid."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry
from lesionseg.errors import GeometryError
from lesionseg.inference.boxes import Boxes
from lesionseg.inference.candidates import CandidateSet
from lesionseg.ops.boxes import box_iou
from lesionseg.plan.plan import CandidateRule

SAME_LESION = 0.1  # IoU of boxes from which both heads mean one lesion: the match rule's own


def restore_boxes(
    boxes: NDArray[np.float32], plan_geometry: Geometry, file_geometry: Geometry
) -> NDArray[np.float32]:
    """Boxes `[n, 2·dims]` on the plan's grid as boxes on the file's, cut at its border.

    The smallest box that holds the rotated one: exact where grids differ by spacing, flips, axis
    order and shifts; wider where they are oblique to each other. Raises `GeometryError` when the
    numbers of axes differ.
    """
    dims = plan_geometry.dims
    if file_geometry.dims != dims or boxes.shape[1] != 2 * dims:
        raise GeometryError(f"Boxes {boxes.shape} do not fit grids of {dims} axes.")
    if len(boxes) == 0:
        return boxes
    sides = boxes.astype(np.float64).reshape(-1, 2, dims)
    picks = np.array(list(itertools.product((0, 1), repeat=dims)))  # corner -> start or stop, axis
    corners = sides[:, picks, np.arange(dims)] - 0.5  # box edges lie half a voxel before the index
    points = plan_geometry.to_mm(corners.reshape(-1, dims))
    index = file_geometry.to_index(points).reshape(len(boxes), -1, dims) + 0.5
    limit = np.array(file_geometry.shape, dtype=np.float64)
    low, high = index.min(axis=1).clip(0, limit), index.max(axis=1).clip(0, limit)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def box_candidates(
    detections: Boxes,
    plan_geometry: Geometry,
    file_geometry: Geometry,
    rule: CandidateRule,
    label_values: Sequence[int],
) -> tuple[Candidate, ...]:
    """Candidates without masks, by descending score, ids from 1.

    The diameter is that of the ellipsoid (2-D: ellipse) that touches the box's sides. Boxes that
    lie outside the file, or are smaller than the rule allows, are left out.
    """
    boxes = restore_boxes(detections.boxes.numpy(), plan_geometry, file_geometry)
    scores = detections.scores.clamp(0, 1)
    rows = zip(boxes.tolist(), scores.tolist(), detections.labels.tolist(), strict=True)
    candidates = [
        Candidate.from_box(1, label_values[label - 1], score, box, file_geometry)
        for box, score, label in rows
    ]
    dims = file_geometry.dims
    large = [
        c
        for c in candidates
        if prod(b - a for a, b in zip(c.start_vox, c.stop_vox, strict=True)) >= 0.5**dims
        and c.diameter_mm >= rule.min_diameter_mm
    ]
    return _numbered(large)


def fuse(voxels: CandidateSet, boxes: Sequence[Candidate]) -> CandidateSet:
    """Both heads' candidates as one list: what both found first, what one found alone after.

    A candidate of the voxels and a box of the same label are one lesion where the IoU of their
    boxes is at least 0.1. Each is used once, the largest IoU first. It keeps the voxels' mask and
    has the mean of both scores; a candidate that only one head found has half its score, the mean
    with 0, as an ensemble's member that saw nothing would. Ids follow the new scores.
    """
    partner = _partners(voxels.candidates, boxes)
    scored = [
        (c, (c.score + (boxes[partner[i]].score if i in partner else 0.0)) / 2)
        for i, c in enumerate(voxels.candidates)
    ]
    partners = set(partner.values())
    scored += [(b, b.score / 2) for j, b in enumerate(boxes) if j not in partners]
    scored.sort(key=lambda pair: -pair[1])  # stable: ties with the voxels' first
    ids = np.zeros(len(voxels.candidates) + 1, dtype=np.int32)
    for number, (candidate, _) in enumerate(scored, start=1):
        if candidate.has_mask:
            ids[candidate.id] = number
    candidates = _numbered([replace(candidate, score=score) for candidate, score in scored])
    removed = tuple(replace(c, score=c.score / 2) for c in voxels.removed)
    return CandidateSet(candidates, ids[voxels.instances], voxels.values, removed)


def _numbered(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return tuple(replace(c, id=i) for i, c in enumerate(candidates, start=1))


def _partners(voxels: Sequence[Candidate], boxes: Sequence[Candidate]) -> dict[int, int]:
    """Which box goes with which candidate of the voxels."""
    if not voxels or not boxes:
        return {}
    tables = ([[*c.start_vox, *c.stop_vox] for c in side] for side in (voxels, boxes))
    overlap = box_iou(*(torch.tensor(table) for table in tables)).numpy()
    same = np.array([[v.label == b.label for b in boxes] for v in voxels])
    overlap = np.where(same, overlap, 0)
    partner: dict[int, int] = {}
    used: set[int] = set()
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(boxes))
        if overlap[i, j] < SAME_LESION:
            break
        if i not in partner and j not in used:
            partner[i] = j
            used.add(j)
    return partner
