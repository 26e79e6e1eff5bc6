"""What the focal loss teaches: focal_balance.csv, loss_curves.csv and warnings while training.

From the logits of the batch that is being trained on, at logging steps: after each half percent of
the budget or each minute, whichever is sooner. A measurement takes about 30 ms for two tiles of 64³
on one CPU core; a GPU makes it by itself and is asked for it after the step.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.errors import ReadError
from lesionseg.evaluation.table_row import TableRow, write_table
from lesionseg.io.atomic import read_json, write_json
from lesionseg.losses.gradient_balance import (
    N_QUANTILES,
    Balance,
    FocalTerm,
    LossCurves,
    Parts,
    balance_figures,
    curve_figures,
)
from lesionseg.training.callbacks.degeneration import (
    STRETCH,
    BalanceRow,
    Degeneration,
    find_degenerations,
)
from lesionseg.training.callbacks.history import History
from lesionseg.training.callbacks.step_callbacks import AfterStep
from lesionseg.training.device.accelerator import LateFigures
from lesionseg.training.lightning_module import LesionModule
from lesionseg.training.step.supervision import LevelTargets

log = logging.getLogger(__name__)

BALANCE, CURVES, WARNINGS = (
    Path("focal_balance.csv"),
    Path("loss_curves.csv"),
    Path("focal_balance.json"),
)
EVERY_SHARE, EVERY_MINUTES = 0.005, 1.0  # of the budget, of time
CURVES_FROM = 0.9  # of the budget: the curves show what training ends with


@dataclass(frozen=True, kw_only=True)
class FocalBalanceRow(TableRow):
    """One line of focal_balance.csv, see `FocalBalance`."""

    step: int
    minutes: float
    loss: float | None = None
    loss_lesion: float | None = None
    loss_hard: float | None = None
    loss_easy: float | None = None
    gradient_lesion: float | None = None
    gradient_hard: float | None = None
    gradient_easy: float | None = None
    loss_sum: float | None = None
    gradient_sum: float | None = None
    n_lesions: int = 0
    lesion_p: float | None = None
    background_p: float | None = None


@dataclass(frozen=True)
class CurveRow(TableRow):
    """One line of loss_curves.csv: the share of the loss up to a quantile of the elements."""

    quantile: float
    lesion: float | None
    background: float | None


class FocalBalance(AfterStep):
    """Writes which voxels get loss and gradient, on the first process, and warns once of each kind.

    focal_balance.csv, one row per measurement: `loss` is the mean of the whole training loss since
    the row before; `loss_…` and `gradient_…` are shares of the loss's focal term and of the L1 norm
    of its gradient by the finest logits. They tell what comes from lesion elements, from the
    hardest 1 % of background and from the easy rest. The sums stand beside them; all are empty for
    a loss without a focal term. `lesion_p`: mean over `n_lesions` of the highest probability in
    each. loss_curves.csv: mean cumulative loss of the measurements in the last tenth of the budget.
    focal_balance.json: a list of {step, kind, sentence}. A resumed training goes on with all.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.history: History | None = None
        self.terms: tuple[FocalTerm, ...] = ()
        self.warnings: list[Degeneration] = []
        self._rows: list[BalanceRow] = []
        self._losses: list[Tensor] = []
        self._balances: list[LateFigures] = []  # of the parts of this step
        self._curves: list[LateFigures] = []
        self._measured = (-1.0, -1.0)  # progress and minutes of the latest

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up what an earlier part of the same training has written."""
        if not trainer.is_global_zero:
            return
        module = cast(LesionModule, pl_module)
        done = module.counters.steps
        self.terms = module.objective.focal_terms()
        self.history = History(self.run_dir / BALANCE, done, FocalBalanceRow.columns())
        self._rows = [_from_row(row) for row in self.history.rows[-STRETCH:]]
        self.warnings = read_warnings(self.run_dir / WARNINGS, done)

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last row, and the curves."""
        if self.history is not None:
            self.history.write()
        curves = [figures.read() for figures in self._curves]
        return {
            "losses": torch.stack(self._losses) if self._losses else torch.empty(0),
            "curves": torch.tensor(curves, dtype=torch.float64),
            "measured": self._measured,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._losses = list(state_dict["losses"])
        self._curves = [LateFigures.of(curve) for curve in state_dict["curves"]]
        self._measured = tuple(state_dict["measured"])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ask to see the logits of a logging step, when it is time."""
        module = cast(LesionModule, pl_module)
        if self.history is None or (module.counters.steps + 1) % module.settings.log_every:
            return
        progress, minutes = module.progress, module.counters.minutes
        share = progress - self._measured[0]
        # below 0 where the budget has grown since
        if not 0 <= share < EVERY_SHARE or minutes - self._measured[1] >= EVERY_MINUTES:
            self._measured = (progress, minutes)
            module.watchers.append(partial(self._watch, module))

    def after_step(self, trainer: pl.Trainer, module: LesionModule) -> None:
        """Write the row of a measured step; nothing of a skipped one."""
        if module.latest is None or self.history is None:
            return
        self._losses.append(module.latest.loss.masked_fill(module.latest.skipped, torch.nan))
        if self._balances:
            module.settle()
            if not module.counters.skipped_in_a_row:
                self._add(module)
        self._balances = []

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is left, and the curves."""
        if self.history is not None:
            self.history.write()
            write_json(self.run_dir / WARNINGS, [asdict(warning) for warning in self.warnings])
        if self._curves:
            curves = [LossCurves.of(figures.read()) for figures in self._curves]
            write_curves(self.run_dir / CURVES, curves)

    def _watch(self, module: LesionModule, logits: Tensor, targets: LevelTargets) -> None:
        meaning: Any = {"activation": module.plan.activation, "valid": targets.valid}
        labels, instances = targets.labels, targets.instances
        figures = balance_figures(logits, labels, instances, self.terms, **meaning)
        self._balances.append(LateFigures.of(figures))
        if self.terms and module.progress >= CURVES_FROM:
            self._curves.append(
                LateFigures.of(curve_figures(logits, labels, self.terms, **meaning))
            )

    def _add(self, module: LesionModule) -> None:
        loss = float(torch.stack(self._losses).nanmean())
        balances = [Balance.of(figures.read()) for figures in self._balances]
        row = _row(module.counters.steps, loss, balances, bool(self.terms))
        self._losses = []
        self._rows = [*self._rows, row][-STRETCH:]
        if self.history is not None:
            self.history.add({**_to_row(row), "minutes": module.counters.minutes})
        for warning in find_degenerations(self._rows, module.progress):
            self._warn(warning)

    def _warn(self, warning: Degeneration) -> None:
        if warning.kind in {earlier.kind for earlier in self.warnings}:
            return
        log.warning("Step %d: %s", warning.step, warning.sentence)
        self.warnings.append(warning)
        write_json(self.run_dir / WARNINGS, [asdict(earlier) for earlier in self.warnings])


def read_warnings(path: Path, upto_step: int) -> list[Degeneration]:
    """The warnings of a focal_balance.json up to a step; none where there is no such file."""
    try:
        raw = read_json(path)
    except ReadError:
        return []
    return [Degeneration(**warning) for warning in raw if warning["step"] <= upto_step]


def write_curves(path: Path, curves: Sequence[LossCurves]) -> None:
    """Write the mean of the curves: columns quantile, lesion and background."""
    lesion = _mean([c.lesion for c in curves if c.lesion is not None])
    background = _mean([c.background for c in curves if c.background is not None])
    rows = [
        CurveRow(
            float(f"{i / (N_QUANTILES - 1):g}"),
            None if lesion is None else float(f"{lesion[i]:.6g}"),
            None if background is None else float(f"{background[i]:.6g}"),
        )
        for i in range(N_QUANTILES)
    ]
    write_table(path, rows, CurveRow)


def _mean(curves: Sequence[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    return np.asarray(np.mean(curves, axis=0)) if curves else None


def _row(step: int, loss: float, balances: Sequence[Balance], has_terms: bool) -> BalanceRow:
    """One row of the parts of a step."""
    highest = [p for balance in balances for p in balance.lesion_p]
    background = [b.background_p for b in balances if b.background_p is not None]
    nothing = Parts(0.0, 0.0, 0.0)
    return BalanceRow(
        step=step,
        loss=loss,
        parts=sum((b.loss for b in balances), nothing) if has_terms else None,
        gradient=sum((b.gradient for b in balances), nothing) if has_terms else None,
        n_lesions=len(highest),
        lesion_p=sum(highest) / len(highest) if highest else None,
        background_p=max(background, default=None),
    )


def _to_row(row: BalanceRow) -> dict[str, object]:
    cells: dict[str, object] = {"step": row.step, "loss": row.loss, "n_lesions": row.n_lesions}
    for what, parts in (("loss", row.parts), ("gradient", row.gradient)):
        shares = None if parts is None else parts.shares()
        if parts is None or shares is None:
            continue
        cells[f"{what}_sum"] = parts.total
        cells |= {f"{what}_{part}": share for part, share in asdict(shares).items()}
    cells |= {"lesion_p": row.lesion_p, "background_p": row.background_p}
    return {name: "" if value is None else value for name, value in cells.items()}


def _from_row(cells: Mapping[str, str]) -> BalanceRow:
    row = FocalBalanceRow.from_csv(cells)

    def parts(what: str) -> Parts | None:
        total = getattr(row, f"{what}_sum")
        if total is None:
            return None
        shares = [getattr(row, f"{what}_{part}") or 0.0 for part in ("lesion", "hard", "easy")]
        return Parts(*(total * share for share in shares))

    return BalanceRow(
        step=row.step,
        loss=row.loss,
        parts=parts("loss"),
        gradient=parts("gradient"),
        n_lesions=row.n_lesions,
        lesion_p=row.lesion_p,
        background_p=row.background_p,
    )
