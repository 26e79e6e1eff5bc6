"""label_audit.csv: the training references that are most likely wrong, for a human to look at.

A network that has not yet overfitted the training set predicts what the other cases taught
it. A reference lesion that it does not see, snapshot after snapshot, is likely none, or lies beside
the real one; a spot that it takes for a lesion is likely one that the reference misses.
"""

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from lesionseg.core import equivalent_diameter_mm
from lesionseg.data.cache.cached_case import CachedCase
from lesionseg.data.cache.lesion_table import CachedLesion
from lesionseg.errors import ReadError
from lesionseg.evaluation.rows import SuspectRow
from lesionseg.evaluation.table_row import write_table
from lesionseg.inference.decision import find_by_plan
from lesionseg.inference.sliding.window import predict_probabilities
from lesionseg.io.atomic import read_json, write_text
from lesionseg.plan.plan import Plan
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.callbacks.suspects import (
    Observation,
    Snapshot,
    Suspect,
    rank_suspects,
    snapshot_from_json,
)
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.settings import AuditSettings

log = logging.getLogger(__name__)

AUDIT, SNAPSHOTS = Path("label_audit.csv"), Path("label_audit.json")


class LabelAudit(AfterStep):
    """Looks at all training cases at given shares of the budget and writes the ranked list.

    With several processes the first one looks while the others wait. Snapshots are kept in
    label_audit.json, so that a resumed training does not lose them. Time and choices: see
    `AuditSettings`.
    """

    def __init__(
        self, cases: Sequence[CachedCase], plan: Plan, settings: AuditSettings, run_dir: Path
    ) -> None:
        self.cases, self.plan, self.settings, self.run_dir = tuple(cases), plan, settings, run_dir
        self.snapshots: list[Snapshot] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the snapshots of an earlier part of the same training."""
        if cast(LesionModule, pl_module).counters.steps:
            self.snapshots = read_snapshots(self.run_dir / SNAPSHOTS)

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Take a snapshot when it is due; the last one waits for the end of training."""
        if module.progress < 1:
            self._take(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what is due and write the list."""
        self._take(trainer, cast(LesionModule, pl_module))
        if trainer.is_global_zero:
            suspects = rank_suspects(self.snapshots)[: self.settings.max_rows]
            shares = [snapshot.share for snapshot in self.snapshots]
            write_audit(self.run_dir / AUDIT, suspects, shares)

    def _take(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """One snapshot stands for all shares passed since the one before."""
        latest = max((snapshot.share for snapshot in self.snapshots), default=0.0)
        due = [share for share in self.settings.at if latest < share <= module.progress]
        if not due:
            return
        share = max(due)
        if trainer.is_global_zero:
            snapshot = self._snapshot(share, module.final_network)
        else:
            snapshot = Snapshot(share, ())
        self.snapshots.append(snapshot)
        if trainer.is_global_zero:
            write_snapshots(self.run_dir / SNAPSHOTS, self.snapshots)
        trainer.strategy.barrier()

    def _snapshot(self, share: float, network: nn.Module) -> Snapshot:
        started = time.monotonic()
        frozen = copy.deepcopy(network)  # predicting changes the weights' layout and the mode
        seen = [look(frozen, case, self.plan, self.settings.overlap) for case in self.cases]
        log.info(
            "Label audit at %.0f %% of training: %d cases in %.0f s.",
            100 * share,
            len(self.cases),
            time.monotonic() - started,
        )
        return Snapshot(share, tuple(observation for each in seen for observation in each))


def look(
    network: nn.Module, case: CachedCase, plan: Plan, overlap: float = 0.25
) -> tuple[Observation, ...]:
    """All lesions of a prepared case, and all candidates that lie neither on nor beside one."""
    image = torch.from_numpy(np.asarray(case.image, dtype=np.float32))
    p = predict_probabilities(network, image, plan, overlap=overlap).float().cpu().numpy()
    return (*lesions_seen(case, p, plan), *spots_seen(case, p, plan))


def lesions_seen(case: CachedCase, p: NDArray[np.float32], plan: Plan) -> list[Observation]:
    """Each reference lesion with the mean of the probabilities `p` `[K, *spatial]` of its label.

    Where the plan has regions that is the highest over them.
    """
    instances = case.instances
    p = p.max(axis=0, keepdims=True) if plan.regions else p
    return [_lesion_seen(case, lesion, instances, p, plan) for lesion in case.lesions]


def _lesion_seen(
    case: CachedCase,
    lesion: CachedLesion,
    instances: NDArray[np.unsignedinteger],
    p: NDArray[np.float32],
    plan: Plan,
) -> Observation:
    box = tuple(slice(a, b) for a, b in zip(lesion.start, lesion.stop, strict=True))
    inside = np.asarray(instances[box]) == lesion.id
    centre = np.argwhere(inside).mean(axis=0) + np.array(lesion.start)
    geometry = case.geometry
    return Observation(
        kind="lesion",
        case=case.case,
        group=case.group,
        label=list(plan.lesion_labels.values())[lesion.label - 1],
        lesion=lesion.id,
        centre_mm=tuple(float(v) for v in geometry.to_mm(centre[None])[0]),
        diameter_mm=float(
            equivalent_diameter_mm(lesion.voxels * geometry.voxel_size, geometry.dims)
        ),
        p=float(p[lesion.label - 1][box][inside].mean()),
    )


def spots_seen(case: CachedCase, p: NDArray[np.float32], plan: Plan) -> list[Observation]:
    """Each candidate in `p` `[K, *spatial]` that touches neither a lesion nor what is ignored.

    Of labels that the case does not annotate there are none.
    """
    unannotated = {plan.mask_values[k - 1] for k in case.unannotated}
    candidate_set = find_by_plan(p, case.geometry, plan)
    known = np.asarray(case.labels) > 0
    if case.valid is not None:
        known |= ~np.asarray(case.valid)
    # a mark that ends beside a lesion is a badly drawn outline, no second lesion
    known = ndimage.binary_dilation(known, np.ones((3,) * known.ndim))
    touching = set(np.unique(candidate_set.instances[known]).tolist())
    return [
        Observation(
            kind="spot",
            case=case.case,
            group=case.group,
            label=plan.lesion_labels[candidate.label],
            lesion=None,
            centre_mm=candidate.centre_mm,
            diameter_mm=candidate.diameter_mm,
            p=candidate.score,
        )
        for candidate in candidate_set.candidates
        if candidate.id not in touching and candidate.label not in unannotated
    ]


def write_audit(path: Path, suspects: Sequence[Suspect], shares: Sequence[float]) -> None:
    """Write the ranked list; `shares` name the columns of the snapshots' probabilities."""
    at = [round(100 * share) for share in shares]
    rows = [_row(rank, suspect, at) for rank, suspect in enumerate(suspects, start=1)]
    write_table(path, rows, SuspectRow)


def _row(rank: int, suspect: Suspect, at: Sequence[int]) -> SuspectRow:
    place = suspect.place
    return SuspectRow(
        rank=rank,
        kind=place.kind,
        case=place.case,
        group=place.group,
        label=place.label,
        lesion=place.lesion,
        centre_mm=tuple(round(v, 2) for v in place.centre_mm),
        diameter_mm=round(place.diameter_mm, 2),
        suspicion=round(suspect.suspicion, 4),
        p_at={share: round(p, 4) for share, p in zip(at, suspect.p, strict=True)},
    )


def read_snapshots(path: Path) -> list[Snapshot]:
    """The snapshots taken so far; none, with a warning, when the file is missing or damaged."""
    try:
        return [snapshot_from_json(raw) for raw in read_json(path)]
    except (ReadError, KeyError, TypeError, ValueError) as error:
        log.warning("The label audit begins again: %s", error)
        return []


def write_snapshots(path: Path, snapshots: Sequence[Snapshot]) -> None:
    """Write them in a compact form: there may be hundreds of thousands of observations."""
    raw = [asdict(snapshot) for snapshot in snapshots]
    write_text(path, json.dumps(raw, separators=(",", ":"), allow_nan=False))
