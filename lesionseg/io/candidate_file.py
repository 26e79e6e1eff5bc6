"""`<case>_candidates.json`: the candidates of a case, in a file other programs may write too."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from lesionseg.core import Candidate, Geometry, InputVerdict, OperatingPoint, Prediction
from lesionseg.errors import ContentError, misfits
from lesionseg.io.files import read_json, write_json

SCHEMA_VERSION = 1


class _Entry(BaseModel):
    """A candidate as a file must or may state it."""

    model_config = ConfigDict(strict=True)

    score: Annotated[FiniteFloat, Field(ge=0, le=1)]
    start_vox: list[FiniteFloat]
    stop_vox: list[FiniteFloat]
    id: PositiveInt | None = None
    label: PositiveInt = 1
    centre_mm: list[FiniteFloat] | None = None
    diameter_mm: FiniteFloat | None = None
    volume_ml: FiniteFloat | None = None
    has_mask: bool = False
    accepted: bool = True
    probability: FiniteFloat | None = None
    zone: str = ""

    def candidate(self, place: int, geometry: Geometry) -> Candidate:
        """The candidate, with what is not stated; raises `ValueError` for what fits nothing."""
        box = (*self.start_vox, *self.stop_vox)
        for name in ("start_vox", "stop_vox", "centre_mm"):
            value = getattr(self, name)
            if value is not None and len(value) != geometry.dims:
                raise ValueError(f"{name} {value} has not {geometry.dims} numbers")
        if not all(a < b for a, b in zip(self.start_vox, self.stop_vox, strict=True)):
            raise ValueError(f"stop_vox {self.stop_vox} is not beyond start_vox {self.start_vox}")
        bare = Candidate.from_box(self.id or place, self.label, self.score, box, geometry)
        return replace(
            bare,
            centre_mm=bare.centre_mm if self.centre_mm is None else tuple(self.centre_mm),
            diameter_mm=bare.diameter_mm if self.diameter_mm is None else self.diameter_mm,
            **{k: getattr(self, k) for k in ("volume_ml", "has_mask", "accepted", "probability")},
            zone=self.zone,
        )


class _Content(BaseModel):
    schema_version: Literal[1] = 1
    candidates: list[_Entry]
    removed: list[_Entry] = []
    voxel_threshold: FiniteFloat | None = None
    operating_point: OperatingPoint | None = None
    scored: bool = True
    input_check: InputVerdict | None = None


def write_candidates(path: Path, prediction: Prediction) -> None:
    """Write the candidates of a prediction atomically. Raises `OutputError` for NaN.

    `size_unit`: "mm", "mm at the detector" or, where no pixel size is known, "px". `removed`, where
    there are any: what was dropped for its size alone. `input_check`, where one was made: how
    unlike the training scans this one is (1 is the limit), the sentence that warns of it, and the
    channels it lacks.
    """
    point = prediction.operating_point
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "case": prediction.case,
        "size_unit": prediction.geometry.size_unit,
        "voxel_threshold": prediction.voxel_threshold,
        "operating_point": None if point is None else asdict(point),
        "candidates": [_stated(candidate) for candidate in prediction.candidates],
    }
    if prediction.input is not None:
        content["input_check"] = asdict(prediction.input)
    if prediction.removed:
        content["removed"] = [_stated(candidate) for candidate in prediction.removed]
    if not prediction.scored:  # the scores stand in for another program's missing ones
        content["scored"] = False
    write_json(path, content)


def _stated(candidate: Candidate) -> dict[str, Any]:
    """A candidate as the file has it; `zone` only where there are zones."""
    return {name: value for name, value in asdict(candidate).items() if name != "zone" or value}


def read_candidates(path: Path, case: str, geometry: Geometry) -> Prediction:
    """Read a case's candidates on the grid `geometry`, without masks; by descending score, then id.

    Of each candidate only `score`, `start_vox` and `stop_vox` must be there: `id` is then its place
    in the file, `label` 1, `accepted` true, `has_mask` false, the centre the box's and the diameter
    that of the ellipsoid that touches the box's sides. Raises `ContentError` naming the key.
    """
    content = read_json(path)
    point = content.get("operating_point") if isinstance(content, dict) else None
    if isinstance(point, dict) and "name" not in point:
        content["operating_point"] = {"name": f"score:{point.get('score')}", **point}
    try:
        stated = _Content.model_validate(content)
        kept, removed = (
            tuple(entry.candidate(place, geometry) for place, entry in enumerate(entries, start=1))
            for entries in (stated.candidates, stated.removed)
        )
    except ValidationError as error:
        raise ContentError(f"{path}: {misfits(error, content)[:300]}.") from error
    except ValueError as error:
        raise ContentError(f"{path}: {error}.") from error
    if len({candidate.id for candidate in kept}) < len(kept):
        raise ContentError(f"{path}: two candidates have the same id.")
    return Prediction(
        case,
        geometry,
        tuple(sorted(kept, key=lambda c: (-c.score, c.id))),
        None,
        stated.voxel_threshold,
        stated.operating_point,
        stated.scored,
        removed=removed,
        input=stated.input_check,
    )
