"""`<case>_candidates.json`: the candidates of a case, in a file other programs may write too."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from lesionseg.core import Candidate, Geometry, InputVerdict, OperatingPoint, Prediction
from lesionseg.errors import ContentError
from lesionseg.io.atomic import read_json, write_json

SCHEMA_VERSION = 1
_POINT_FIELDS = tuple(OperatingPoint.__dataclass_fields__)


@dataclass(frozen=True)
class CandidateFile:
    """What the file says; see `core.Prediction` for the fields."""

    candidates: tuple[Candidate, ...]
    voxel_threshold: float | None
    operating_point: OperatingPoint | None
    scored: bool
    removed: tuple[Candidate, ...] = ()
    input: InputVerdict | None = None


def write_candidates(path: Path, prediction: Prediction) -> None:
    """Write the candidates of a prediction atomically. Raises `OutputError` for NaN.

    `size_unit`: "mm", "mm at the detector" or, where no pixel size is known, "px". `removed`, where
    there are any: what was dropped for its size alone. `input_check`, where one was made: how
    unlike the training scans this one is (1 is the limit), the sentence that warns of it, and the
    channels it lacks.
    """
    point = prediction.operating_point
    content = {
        "schema_version": SCHEMA_VERSION,
        "case": prediction.case,
        "size_unit": prediction.geometry.size_unit,
        "voxel_threshold": prediction.voxel_threshold,
        "operating_point": None if point is None else asdict(point),
        "candidates": [_entry(candidate) for candidate in prediction.candidates],
    }
    if prediction.input is not None:
        content["input_check"] = asdict(prediction.input)
    if prediction.removed:
        content["removed"] = [_entry(candidate) for candidate in prediction.removed]
    # said only where it is not so: the scores stand in for another program's missing ones
    write_json(path, content if prediction.scored else {**content, "scored": False})


def _entry(candidate: Candidate) -> dict[str, Any]:
    """A candidate as the file has it; `zone` only where there are zones."""
    return {name: value for name, value in asdict(candidate).items() if name != "zone" or value}


def read_candidates(path: Path, geometry: Geometry) -> CandidateFile:
    """Read candidates on the grid `geometry`, sorted by descending score, ties by id.

    Of each candidate only `score`, `start_vox` and `stop_vox` must be there: `id` is then its place
    in the file, `label` 1, `accepted` true, `has_mask` false, the centre the box's and the diameter
    that of the ellipsoid that touches the box's sides. Raises `ContentError` naming the candidate.
    """
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("candidates"), list):
        raise ContentError("The file contains no list of candidates.", where=path)
    version = content.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ContentError(
            "The file's version is unknown.", where=path, seen=version, expected=SCHEMA_VERSION
        )
    candidates = [
        _candidate(c, i, geometry, path) for i, c in enumerate(content["candidates"], start=1)
    ]
    ids = [candidate.id for candidate in candidates]
    if len(set(ids)) < len(ids):
        raise ContentError("Two candidates have the same id.", where=path, seen=sorted(ids))
    return CandidateFile(
        candidates=tuple(sorted(candidates, key=lambda c: (-c.score, c.id))),
        voxel_threshold=_optional(content, "voxel_threshold", path),
        operating_point=_operating_point(content.get("operating_point"), path),
        scored=bool(content.get("scored", True)),
        removed=_removed(content.get("removed", []), geometry, path),
        input=_input(content.get("input_check"), path),
    )


def _input(entry: Any, path: Path) -> InputVerdict | None:
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or not isinstance(entry.get("warning", ""), str):
        raise ContentError("'input_check' is no score and warning.", where=path, seen=entry)
    missing = entry.get("missing", [])
    if not isinstance(missing, list) or not all(isinstance(name, str) for name in missing):
        raise ContentError("'missing' are no names of channels.", where=path, seen=missing)
    score = _optional(entry, "score", path)
    return InputVerdict(score, entry.get("warning", ""), tuple(missing))


def _removed(entries: Any, geometry: Geometry, path: Path) -> tuple[Candidate, ...]:
    if not isinstance(entries, list):
        raise ContentError("'removed' is not a list of candidates.", where=path, seen=entries)
    return tuple(_candidate(c, i, geometry, path) for i, c in enumerate(entries, start=1))


def _candidate(entry: Any, place: int, geometry: Geometry, path: Path) -> Candidate:
    if not isinstance(entry, Mapping):
        raise ContentError(f"Candidate {place} is not an object.", where=path, seen=entry)
    start, stop = (_vector(entry, key, geometry.dims, path) for key in ("start_vox", "stop_vox"))
    score, number, label = entry.get("score"), entry.get("id", place), entry.get("label", 1)
    if not (_is_number(score) and 0 <= score <= 1):
        raise _bad(entry, "score", "a number from 0 to 1", path)
    if not (_is_whole(number) and _is_whole(label)):
        raise _bad(entry, "id" if not _is_whole(number) else "label", "an integer from 1", path)
    if not all(a < b for a, b in zip(start, stop, strict=True)):
        raise _bad(entry, "stop_vox", f"beyond start_vox {list(start)}", path)
    centre = entry.get("centre_mm")
    diameter = _optional(entry, "diameter_mm", path)
    bare = Candidate.from_box(number, label, float(score), (*start, *stop), geometry)
    return replace(
        bare,
        centre_mm=_vector(entry, "centre_mm", geometry.dims, path)
        if centre is not None
        else bare.centre_mm,
        diameter_mm=bare.diameter_mm if diameter is None else diameter,
        volume_ml=_optional(entry, "volume_ml", path),
        has_mask=bool(entry.get("has_mask", False)),
        accepted=bool(entry.get("accepted", True)),
        probability=_optional(entry, "probability", path),
        zone=str(entry.get("zone", "")),
    )


def _operating_point(entry: Any, path: Path) -> OperatingPoint | None:
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or not _is_number(entry.get("score")):
        raise ContentError("The operating point has no score.", where=path, seen=entry)
    values: dict[str, Any] = {key: entry[key] for key in _POINT_FIELDS if key in entry}
    # intervals are tuples again
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return OperatingPoint(**{"name": f"score:{entry['score']}", **known})


def _vector(entry: Mapping[str, Any], key: str, dims: int, path: Path) -> tuple[float, ...]:
    value = entry.get(key)
    if isinstance(value, list) and len(value) == dims and all(_is_number(v) for v in value):
        return tuple(float(v) for v in value)
    raise _bad(entry, key, f"{dims} numbers", path)


def _optional(entry: Mapping[str, Any], key: str, path: Path) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if not _is_number(value):
        raise _bad(entry, key, "a number or null", path)
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # which NaN is not


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _bad(entry: Mapping[str, Any], key: str, expected: str, path: Path) -> ContentError:
    return ContentError(
        f"{key!r} of candidate {entry.get('id', '(without id)')} is not usable.",
        where=path,
        seen=entry.get(key),
        expected=expected,
    )
