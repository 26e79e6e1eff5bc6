"""What a predicted case leaves in the output folder, and how it gets there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Geometry, Volume
from lesionseg.inference.predictor import Inferred, Predictor
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import result_suffix, write_volume
from lesionseg.plan.plan import Plan

SaveProbabilities = Literal["none", "uint8", "float16"]
PROBABILITIES = "probabilities"


class Counts(TypedDict):
    """A case's candidates, as `PredictionRow` names them."""

    n_candidates: int
    n_accepted: int


@dataclass(frozen=True)
class Targets:
    """The output folder, and in which numbers probabilities are kept beside the masks."""

    folder: Path
    save_probabilities: SaveProbabilities = "none"

    def paths(self, files: CaseFiles, plan: Plan) -> list[Path]:
        """The files that a case has when it is done."""
        suffix = result_suffix(files.images[0], plan.dims)
        names = [f"_mask{suffix}", f"_instances{suffix}", "_candidates.json"]
        found = [self.folder / f"{files.case}{name}" for name in names]
        if self.save_probabilities != "none":
            found += [self.probability_path(files, plan, label) for label in plan.label_values]
        return found

    def probability_path(self, files: CaseFiles, plan: Plan, label: int) -> Path:
        """Where the probabilities of one label go."""
        suffix = result_suffix(files.images[0], plan.dims)
        if self.save_probabilities != "uint8":
            suffix = suffix.replace(".png", ".tif")
        return self.folder / PROBABILITIES / f"{files.case}_{label}{suffix}"

    def clear(self, files: CaseFiles, plan: Plan) -> None:
        """Remove a case's files, lest old ones be taken for new, and what a killed run left."""
        for path in self.paths(files, plan):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                for half in path.parent.glob(f".????????-{_literal(path.name)}"):
                    half.unlink(missing_ok=True)


def write_case(
    predictor: Predictor, inferred: Inferred, files: CaseFiles, targets: Targets
) -> Counts:
    """Restore, find candidates and write; the candidates' file comes last."""
    channels = predictor.restored(inferred)
    if targets.save_probabilities != "none":
        channels = _saving(channels, inferred.file_geometry, files, targets, predictor.plan)
    prediction = predictor.decide(channels, inferred.file_geometry, files.case)
    suffix = result_suffix(files.images[0], predictor.plan.dims)
    write_prediction(targets.folder, prediction, suffix=suffix, like=files.images[0])
    accepted = sum(c.accepted for c in prediction.candidates)
    return {"n_candidates": len(prediction.candidates), "n_accepted": accepted}


def _saving(
    channels: Iterator[NDArray[np.float32]],
    geometry: Geometry,
    files: CaseFiles,
    targets: Targets,
    plan: Plan,
) -> Iterator[NDArray[np.float32]]:
    """Write each label's probabilities on their way."""
    for channel, label in zip(channels, plan.label_values, strict=True):
        volume = Volume(channel[np.newaxis], geometry)
        write_volume(targets.probability_path(files, plan, label), volume, like=files.images[0])
        yield channel


def _literal(name: str) -> str:
    """The name as a pattern that matches itself alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
