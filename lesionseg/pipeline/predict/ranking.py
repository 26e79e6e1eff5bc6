"""Which scan to label next: the order of unlabelled scans by what a reader's labels would teach."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import entr

from lesionseg.core import CaseFiles, Prediction
from lesionseg.errors import require
from lesionseg.evaluation.table_row import TableRow, write_table
from lesionseg.inference.decision import Inferred
from lesionseg.inference.predictor import Predictor
from lesionseg.io.local_files import fetch_images
from lesionseg.io.predictions import find_predictions, read_prediction
from lesionseg.io.remote.mirror import send
from lesionseg.pipeline.dataset.capabilities import require_voxels
from lesionseg.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RankRow(TableRow):
    """One line of ranking.csv, the scan to label first on top.

    `gain`: Σ h(p)·s over all candidates, where h is the entropy of the calibrated probability p
    in bits and s the standard deviation of the candidate's peak among the views. `uncertainty`:
    Σ h(p); `disagreement`: the mean of s. `expected_lesions`: Σ p, by which to sort where scans
    with lesions are wanted first.
    """

    rank: int
    case: str
    gain: float
    uncertainty: float
    disagreement: float | None = None
    expected_lesions: float = 0.0
    n_candidates: int = 0


def check_rank(plan: Plan, num_shards: int) -> None:
    """Raise `ConfigError` for a network without voxels, and for a part of the cases."""
    require_voxels(plan, "rank", "probabilities of voxels to disagree about")
    require(
        num_shards == 1,
        "A part of the cases cannot be ranked.",
        where="rank",
        seen=f"num_shards={num_shards}",
        remedy="predict in shards, then once more without num_shards and with rank=true.",
    )


def rank_cases(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    output: Path,
    advance: Callable[[str, int, int], None],
) -> list[RankRow]:
    """Rank cases that were predicted into `output`; writes `ranking.csv` there.

    The views are the members of an ensemble, or one network's mirrored images. Cases of one gain
    stand in order of their ids.
    """
    views, written, rows = predictor.views(), find_predictions(output), list[RankRow]()
    for done, files in enumerate(cases, start=1):
        fetch_images(files.images)
        prepared = predictor.scans.open(files)
        prediction = read_prediction(written[files.case], geometry=prepared.file_geometry)
        outcomes = (next(v.infer_all(iter([(None, prepared)])))[1] for v in views)
        rows.append(_row(prediction, [_peaks(prediction, outcome) for outcome in outcomes]))
        advance(files.case, done, len(cases))
    rows.sort(key=lambda row: (-row.gain, row.case))
    ranked = [replace(row, rank=rank) for rank, row in enumerate(rows, start=1)]
    table = output / "ranking.csv"
    write_table(table, ranked, RankRow)
    send([table])
    return ranked


def _peaks(prediction: Prediction, outcome: Inferred | Exception | None) -> NDArray[np.float64]:
    """The highest probability `[n]` that a view gives each candidate, of whatever label."""
    if not isinstance(outcome, Inferred):
        raise outcome or RuntimeError("nothing was inferred")
    ids, instances = [c.id for c in prediction.candidates], prediction.instances
    peaks = np.zeros(len(ids))
    for slabs in outcome.restored():
        row = 0
        for slab in slabs:
            here = instances[row : row + len(slab)] if instances is not None else None
            peaks = np.maximum(peaks, ndimage.maximum(slab, here, ids) if ids else peaks)
            row += len(slab)
    outcome.store.close()
    return peaks


def _row(prediction: Prediction, peaks: Sequence[NDArray[np.float64]]) -> RankRow:
    candidates = prediction.candidates
    p = [c.score if c.probability is None else c.probability for c in candidates]
    entropy = entropies(p)
    spread = np.std(peaks, axis=0)
    return RankRow(
        rank=0,
        case=prediction.case,
        gain=round(float((entropy * spread).sum()), 6),
        uncertainty=round(float(entropy.sum()), 6),
        disagreement=round(float(spread.mean()), 6) if len(spread) else None,
        expected_lesions=round(float(sum(p)), 6),
        n_candidates=len(p),
    )


def entropies(probabilities: Iterable[float]) -> NDArray[np.float64]:
    """Binary entropy `[n]` in bits; 0 for certainty either way.

    >>> entropies([0.0, 0.5, 1.0]).tolist()
    [0.0, 1.0, 0.0]
    """
    p = np.fromiter(probabilities, dtype=np.float64)
    return np.asarray((entr(p) + entr(1 - p)) / np.log(2))
