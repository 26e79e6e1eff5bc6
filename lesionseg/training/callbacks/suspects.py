"""Where a reference is most likely wrong: places that a training network keeps disagreeing with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import dist
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SuspectKind = Literal["lesion", "spot"]
# Lesions of like size that one is compared with: enough for a steady median, few enough to be alike
N_ALIKE = 30
# Below this a median says that the network has not learnt to see lesions of the size at all
LEAST_EXPECTED = 0.1


@dataclass(frozen=True)
class Observation:
    """One place as one network sees it: a reference lesion, or a spot where there is none.

    `p` in [0, 1]: the mean probability in a lesion (its highest would grow with its size, by chance
    alone), the peak of a spot. `lesion`: the lesion's id, None for a spot.
    `centre_mm`: RAS millimetres (x, y, z), in 2-D (x, y). `diameter_mm`: equivalent diameter.
    """

    kind: SuspectKind
    case: str
    group: str
    label: str
    lesion: int | None
    centre_mm: tuple[float, ...]
    diameter_mm: float
    p: float


@dataclass(frozen=True)
class Snapshot:
    """All places of the training cases as seen after `share` (0 to 1) of the training."""

    share: float
    observations: tuple[Observation, ...]


# a place as last seen, and its probability at each snapshot
Track = tuple[Observation, tuple[float, ...]]


@dataclass(frozen=True)
class Suspect:
    """A place with the probabilities of all snapshots and a suspicion in [0, 1].

    With p the mean over the snapshots. A lesion: 1 − p / expected, that being how well lesions of
    its size are usually seen. So a faint dot among faint dots is no suspect. A spot: p, times its
    diameter in median lesion diameters where it is smaller than that. Most of what a network takes
    for lesions without reason is small.
    """

    place: Observation
    p: tuple[float, ...]
    suspicion: float


def rank_suspects(snapshots: Sequence[Snapshot]) -> list[Suspect]:
    """All places, the most suspicious first; ties by kind, case and position.

    A lesion is known by its id, a spot by its position: two spots of one case and label in
    different snapshots are one when their centres are closer than the larger one's diameter. The
    nearest pairs go first. A spot missing from a snapshot has p = 0 there. Place and size are those
    of the latest snapshot that saw it. A lesion is expected to be seen as the median of the
    `N_ALIKE` lesions around it in order of size. No snapshot gives no suspects.
    """
    lesions = _lesions(snapshots)
    expected = _expected(lesions)
    usual_mm = float(np.median([place.diameter_mm for place, _ in lesions])) if lesions else 0.0
    suspects = [
        *(
            Suspect(place, p, min(max(1 - _mean(p) / float(usual), 0.0), 1.0))
            for (place, p), usual in zip(lesions, expected, strict=True)
        ),
        *(
            Suspect(place, p, _mean(p) * min(1.0, place.diameter_mm / max(usual_mm, 1e-6)))
            for place, p in _spots(snapshots)
        ),
    ]
    return sorted(
        suspects, key=lambda s: (-s.suspicion, s.place.kind, s.place.case, s.place.centre_mm)
    )


def _expected(lesions: Sequence[Track]) -> NDArray[np.float64]:
    """How well lesions of the size of each are usually seen."""
    if not lesions:
        return np.empty(0)
    order = np.argsort([place.diameter_mm for place, _ in lesions], kind="stable")
    seen = np.array([_mean(p) for _, p in lesions])[order]
    n = min(N_ALIKE, len(lesions))
    medians = np.median(sliding_window_view(seen, n), axis=1)
    expected = np.empty(len(lesions))
    expected[order] = medians[np.clip(np.arange(len(lesions)) - n // 2, 0, len(lesions) - n)]
    return np.maximum(expected, LEAST_EXPECTED)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _lesions(snapshots: Sequence[Snapshot]) -> list[Track]:
    seen: dict[tuple[str, int | None], list[Observation]] = {}
    for snapshot in snapshots:
        for observation in snapshot.observations:
            if observation.kind == "lesion":
                seen.setdefault((observation.case, observation.lesion), []).append(observation)
    return [(each[-1], tuple(s.p for s in each)) for each in seen.values()]


def _spots(snapshots: Sequence[Snapshot]) -> list[Track]:
    """Tracks of spots, grown from the last snapshot backwards."""
    tracks: dict[tuple[str, str], list[list[Observation | None]]] = {}
    for done, snapshot in enumerate(reversed(snapshots)):
        here: dict[tuple[str, str], list[Observation]] = {key: [] for key in tracks}
        for observation in snapshot.observations:
            if observation.kind == "spot":
                here.setdefault((observation.case, observation.label), []).append(observation)
        for key, spots in here.items():
            _extend(tracks.setdefault(key, []), spots, done)
    return [
        (
            next(observation for observation in track if observation is not None),
            tuple(0.0 if s is None else s.p for s in reversed(track)),
        )
        for each in tracks.values()
        for track in each
    ]


def _extend(
    tracks: list[list[Observation | None]], spots: Sequence[Observation], done: int
) -> None:
    """Append to each of the `done` entries long tracks its nearest spot, or None; begin new ones.

    A track's place is its newest observation in time, the first one.
    """
    places = [next(s for s in track if s is not None) for track in tracks]
    pairs = sorted(
        (distance, i, j)
        for i, place in enumerate(places)
        for j, spot in enumerate(spots)
        if (distance := dist(place.centre_mm, spot.centre_mm))
        < max(place.diameter_mm, spot.diameter_mm)
    )
    spot_of: dict[int, int] = {}
    for _, i, j in pairs:
        if i not in spot_of and j not in spot_of.values():
            spot_of[i] = j
    for i, track in enumerate(tracks):
        track.append(spots[spot_of[i]] if i in spot_of else None)
    free = [spot for j, spot in enumerate(spots) if j not in spot_of.values()]
    tracks.extend([*[None] * done, spot] for spot in free)


def snapshot_from_json(raw: Mapping[str, Any]) -> Snapshot:
    """A snapshot from what `dataclasses.asdict` made of it; raises `KeyError`, `TypeError`."""
    observations = (
        Observation(**{**each, "centre_mm": tuple(each["centre_mm"])})
        for each in raw["observations"]
    )
    return Snapshot(float(raw["share"]), tuple(observations))
