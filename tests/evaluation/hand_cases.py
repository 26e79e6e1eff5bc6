"""Tiny cases drawn by hand, with a comment and the expected result of the default preset.

`by_pairs` contains the values that differ under the preset `instances`.

In a drawing, a digit is an instance id and a dot is background. Rows are separated by spaces,
slices by bars. Candidates have the given scores and label 1 if no other is given.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

import numpy as np
from scipy.ndimage import find_objects

from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation import PRESETS, CaseRows, Tables, match_case
from lesionseg.evaluation.tables import BY_LABEL, region_part


@dataclass(frozen=True)
class HandCase:
    """A drawing and its expected result.

    `detected_at` contains a score for each lesion. `secondary` contains lesions found and false
    positives by secondary criterion. `n_true` is the number of true candidates.
    """

    name: str
    reference: str
    prediction: str
    scores: tuple[float, ...]
    dice: float | None = None
    detected_at: tuple[float | None, ...] = ()
    fp: int = 0
    n_true: int | None = None  # None: equal to the number of lesions found
    ignored: int = 0
    candidate_labels: tuple[int, ...] = ()
    accepted_from: float = 0.0
    secondary: dict[str, tuple[int, int]] = field(default_factory=dict)
    by_pairs: dict[str, object] = field(default_factory=dict)

    @property
    def tp(self):
        return sum(at is not None and at >= self.accepted_from for at in self.detected_at)


class Found:
    """The rows of one case. The cells of its row in the table of cases are attributes.

    `lesions` and `candidates` are rows with attributes, of all labels together.
    """

    def __init__(self, rows):
        self.rows = rows

    def __getattr__(self, name):
        return self.rows.cases[0].get(name)

    @property
    def lesions(self):
        return tuple(SimpleNamespace(**row) for row in self.rows.lesions if not is_extra(row))

    @property
    def candidates(self):
        return tuple(SimpleNamespace(**row) for row in self.rows.candidates if not is_extra(row))

    def n_outcome(self, outcome):
        return sum(candidate.outcome == outcome for candidate in self.candidates)

    def of_region(self, name):
        """Return the rows of a region as a case of its own."""
        part = region_part(name)
        tables = []
        for table in (self.rows.cases, self.rows.lesions, self.rows.candidates):
            tables.append([row | {"part": ""} for row in table if row["part"] == part])
        return Found(CaseRows(*tables))

    def change(self, lesions=None, candidates=None, regions=None, **cells):
        """Return the case with other cells, lesions or candidates.

        `annotated`, `dice_by_label` and `has_scores` are translated into cells.
        """
        case = self.rows.cases[0] | cells
        annotated = case.pop("annotated", None)
        if annotated is not None:
            case["unannotated"] = [label for label, known in annotated.items() if not known]
            case["annotated_share"] = sum(annotated.values()) / len(annotated)
        if case["status"] == "missing":
            case["annotated_share"] = 0.0
        if case.pop("has_scores", True) is False:
            case["case_score"] = None
        dice = case.pop("dice_by_label", {1: case.get("dice")})
        own = {name: case[name] for name in ("case", "group")}
        rows = CaseRows([case])
        for label, value in dice.items():
            rows.cases.append({**own, "part": BY_LABEL, "label": label, "dice": value})
        lesions = self.lesions if lesions is None else lesions
        candidates = self.candidates if candidates is None else candidates
        rows.lesions.extend(vars(x) | own for x in lesions)
        rows.candidates.extend(vars(x) | own for x in candidates)
        case["n_lesions"] = len(rows.lesions)
        for name, region in (regions or {}).items():
            rows.add(region.change(**own).rows, part=region_part(name))
        return Found(rows)


def is_extra(row):
    """Return True for the rows of regions, and of labels that were matched separately."""
    return row["part"] == BY_LABEL or row["part"].startswith("region ")


def replace(item, **changes):
    """Return a dataclass, a case or a row of a case with changed values."""
    if isinstance(item, Found):
        return item.change(**changes)
    if isinstance(item, SimpleNamespace):
        return SimpleNamespace(**vars(item) | changes)
    return dataclasses.replace(item, **changes)


def tables_of(results):
    """Return the tables of cases."""
    return Tables.of(r.rows for r in results)


def box_of(row):
    """Return the box of a lesion or candidate."""
    names = [f"{end}_{axis}_vox" for end in ("start", "stop") for axis in "zyx"]
    return tuple(getattr(row, name) for name in names if hasattr(row, name))


def evaluate_case(reference, prediction, preset, operating_point=None, **known):
    """Match the candidates of a case with its lesions and apply the operating point."""
    return Found(match_case(reference, prediction, preset, **known).accept(operating_point).rows())


def mask_boxes(instances, n):
    """Return the boxes `[n, 2·dims]` (starts, stops; half-open voxels) of the instances 1..n."""
    boxes = np.zeros((n, 2 * instances.ndim))
    for box, found in zip(boxes, find_objects(instances, n), strict=False):
        if found is not None:
            box[:] = [*(s.start for s in found), *(s.stop for s in found)]
    return boxes


def random_instances(rng, shape, n, sides=range(1, 8)):
    """Return up to `n` boxes that may hide each other, with ids 1, 2, … of the visible ones."""
    drawn = np.zeros(shape, np.int32)
    for number in range(1, rng.integers(0, n + 1) + 1):
        start = rng.integers(0, np.array(shape) - 1)
        stop = start + rng.choice(sides, len(shape))
        drawn[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = number
    ids = np.unique(drawn[drawn > 0])
    return np.searchsorted(ids, drawn).astype(np.int32) + (drawn > 0)


def random_case(seed):
    """Return instances and labels of lesions, then instances, labels and scores of candidates."""
    rng = np.random.default_rng(seed)
    shape = (12, 14) if seed % 2 else (6, 7, 8)
    reference = random_instances(rng, shape, 5)
    drawn = random_instances(rng, shape, 8)
    labels = rng.integers(1, 3, int(reference.max())).tolist()
    given = rng.integers(1, 3, int(drawn.max())).tolist()
    has_ties = seed // 2 % 2 == 0
    scores = rng.integers(1, 6, len(given)) / 6 if has_ties else rng.random(len(given))
    return reference, tuple(labels), drawn, tuple(given), tuple(scores.tolist())


def draw(text, spacing_mm=None):
    """Return the instance ids of a drawing and their grid."""
    slices = [[list(row) for row in s.split()] for s in text.replace(".", "0").split("|")]
    ids = np.array(slices, dtype=np.int32)
    ids = ids if "|" in text else ids[0]
    return ids, Geometry.from_spacing(ids.shape, spacing_mm or (1.0,) * ids.ndim)


def make_reference(case, spacing_mm=None):
    ids, geometry = draw(case.reference, spacing_mm)
    labels = (1,) * int(ids.max())
    return Reference(geometry, labels=(ids > 0) * 1, instances=ids, instance_labels=labels)


def make_prediction(case, spacing_mm=None):
    ids, geometry = draw(case.prediction, spacing_mm)
    return prediction_of(
        ids,
        case.scores,
        geometry,
        labels=case.candidate_labels,
        accepted_from=case.accepted_from,
        case=case.name,
    )


def prediction_of(instances, scores, geometry, labels=(), accepted_from=0.0, case="case", **more):
    """Return a prediction with a candidate for each instance, by falling score."""
    dims = instances.ndim
    boxes = mask_boxes(instances, len(scores)).tolist()
    rows = zip(scores, labels or (1,) * len(scores), boxes, strict=True)
    candidates = []
    for number, (score, label, box) in enumerate(rows, start=1):
        place = tuple(box[:dims]), tuple(box[dims:]), (0.0,) * dims
        one = Candidate(number, label, score, *place, 1.0, None, accepted=score >= accepted_from)
        candidates.append(one)
    candidates.sort(key=lambda c: (-c.score, c.id))
    return Prediction(case, geometry, tuple(candidates), instances, **more)


def evaluate_hand_case(hand, preset="lesionseg", spacing_mm=None, case=None, **options):
    """Evaluate a hand case, which is given by its name or as an object."""
    hand = CASES[hand] if isinstance(hand, str) else hand
    truth = make_reference(hand, spacing_mm)
    found = make_prediction(hand, spacing_mm)
    return evaluate_case(truth, found, PRESETS[preset], case=case or hand.name, **options)


@cache
def templates():
    """Return a result, its lesion, its candidate, and a false positive."""
    base = evaluate_hand_case("perfect")
    (wrong,) = evaluate_hand_case("false_alarm").candidates
    return base, *base.lesions, *base.candidates, wrong


def result(case, detected_at=(), false=(), **changes):
    """Return a case of lesions found from these scores on (None: never), and of false positives."""
    base, lesion, hit, wrong = templates()
    found = [at for at in detected_at if at is not None]
    lesions = [replace(lesion, detected_at=at, detected=at is not None) for at in detected_at]
    candidates = [replace(hit, score=score, box_hits=None) for score in found]
    candidates += [replace(wrong, score=score, box_hits=None) for score in false]
    cells = {"lesions": lesions, "candidates": candidates, "n_counted": len(candidates)}
    return base.change(**{"case": case, "group": case, "role": "validation", **cells, **changes})


def naive_curves(at, false, n_cases, rates):
    """Return the average precision, and the recall at each rate, by a loop over all scores.

    `at` are the scores at which the lesions are found, below 0 for never, and `false` those of the
    false positives.
    """
    area = 0.0
    before = 0
    recalls = dict.fromkeys(rates, 0.0)
    for score in sorted({x for x in (*at, *false) if x >= 0}, reverse=True):
        found = sum(x >= score for x in at)
        mistaken = sum(x >= score for x in false)
        area += (found - before) / len(at) * found / (found + mistaken)
        before = found
        recalls |= {rate: found / len(at) for rate in rates if mistaken <= rate * n_cases}
    return area, list(recalls.values())


SIDES = "any_overlap", "iou50", "centre_distance"
FOUND = dict.fromkeys(SIDES, (1, 0))
FALSE = dict.fromkeys(SIDES, (0, 1))
HAND_CASES = (
    # A candidate equal to the only lesion finds it.
    HandCase(
        "perfect",
        ".... .11. .11. ....",
        ".... .11. .11. ....",
        (0.9,),
        1.0,
        (0.9,),
        secondary=FOUND,
    ),
    # A lesion-free case without candidates has neither hits nor misses.
    HandCase("nothing", ".... ....", ".... ....", ()),
    # A candidate in a lesion-free case is false, and Dice undefined.
    HandCase("false_alarm", ".... ....", "11.. ....", (0.4,), fp=1, secondary=FALSE),
    # A lesion without candidate is missed and its case counts Dice 0.
    HandCase("missed", ".... .11.", ".... ....", (), 0.0, (None,)),
    # A candidate next to the lesion is false and the lesion is missed.
    HandCase("elsewhere", "11..... .......", "....111 .......", (0.8,), 0.0, (None,), fp=1),
    # IoU 1/10 suffices.
    HandCase(
        "exactly_a_tenth",
        "1......... ..........",
        "1111111111 ..........",
        (0.5,),
        2 / 11,
        (0.5,),
        secondary={"any_overlap": (1, 0), "iou50": (0, 1)},
    ),
    # IoU 1/11 is a false positive that touches a lesion.
    HandCase(
        "under_a_tenth",
        "1.......... ...........",
        "11111111111 ...........",
        (0.5,),
        2 / 12,
        (None,),
        fp=1,
        secondary={"any_overlap": (1, 0), "iou50": (0, 1), "centre_distance": (0, 1)},
    ),
    # Two candidates on one lesion are both true, and find it once.
    HandCase(
        "split",
        "111111 ......",
        "111122 ......",
        (0.6, 0.9),
        1.0,
        (0.9,),
        n_true=2,
        secondary={"any_overlap": (1, 0), "iou10": (1, 0)},
        by_pairs={"n_true": 1, "ignored": 1},
    ),
    # One candidate over two lesions finds both; by pairs one of them is missed.
    HandCase(
        "merge",
        "111.22 ......",
        "111111 ......",
        (0.7,),
        10 / 11,
        (0.7, 0.7),
        n_true=1,
        secondary={"any_overlap": (2, 0), "iou10": (1, 0)},
        by_pairs={"detected_at": (0.7, None)},
    ),
    # Candidate 1 fits lesion 1 best, but candidate 2 can only find lesion 1. By pairs, an
    # augmenting path finds both lesions.
    HandCase(
        "stolen",
        "111122.. ........",
        "21111... ........",
        (0.9, 0.5),
        10 / 11,
        (0.9, 0.9),
        by_pairs={"detected_at": (0.9, 0.5)},
    ),
    # Candidates of the same score enter together, in any order of ids.
    HandCase("tie", "111222 ......", "222111 ......", (0.5, 0.5), 1.0, (0.5, 0.5)),
    # A candidate under the point finds the lesion only below it.
    HandCase("below_the_point", ".11. .11.", ".11. .11.", (0.3,), 0.0, (0.3,), accepted_from=0.5),
    # By pairs the better candidate replaces the first. The lesion keeps the first score.
    HandCase(
        "late_better_fit",
        "1111 ....",
        "12.. 12..",
        (0.9, 0.4),
        4 / 8,
        (0.9,),
        n_true=2,
        by_pairs={"n_true": 1, "ignored": 1},
    ),
    # Two candidates, each a twentieth of a lesion, find it together.
    HandCase(
        "fragments",
        "11111 11111 11111 11111",
        "1.... ..... ..2.. .....",
        (0.9, 0.4),
        4 / 22,
        (0.4,),
        n_true=2,
        secondary={"any_overlap": (1, 0), "iou10": (0, 2), "iou50": (0, 2)},
        by_pairs={"fp": 2, "detected_at": (None,)},
    ),
    # A candidate in a lesion is true, but covers too little to find it.
    HandCase(
        "contained",
        "11111 11111 11111 11111",
        "1.... ..... ..... .....",
        (0.9,),
        2 / 21,
        (None,),
        n_true=1,
        secondary={"iou10": (0, 1)},
        by_pairs={"fp": 1},
    ),
    # One candidate over five lesions finds them all; by pairs it is false.
    HandCase(
        "umbrella",
        "1..2..3..4..5 .............",
        "1111111111111 .............",
        (0.6,),
        10 / 18,
        (0.6,) * 5,
        n_true=1,
        secondary={"any_overlap": (5, 0), "iou10": (0, 1)},
        by_pairs={"fp": 1, "detected_at": (None,) * 5},
    ),
    # A candidate with less than a tenth in lesions finds none.
    HandCase(
        "unsupported",
        "11111........ 11111........",
        "....111111111 ..........111",
        (0.6,),
        2 / 22,
        (None,),
        fp=1,
        secondary={"any_overlap": (1, 0), "iou10": (0, 1)},
    ),
    # A candidate finds a lesion of another label; by pairs none.
    HandCase(
        "wrong_label",
        ".11. .11.",
        ".11. .11.",
        (0.9,),
        1.0,
        (0.9,),
        candidate_labels=(2,),
        secondary=FALSE,
        by_pairs={"fp": 1, "detected_at": (None,)},
    ),
    # In 3-D a candidate of two of the lesion's three slices finds it.
    HandCase(
        "three_axes",
        "11 11|11 11|11 11",
        "11 11|11 11|.. ..",
        (0.8,),
        16 / 20,
        (0.8,),
        secondary={"any_overlap": (1, 0), "iou50": (1, 0)},
    ),
    # Three lesions, two candidates: at most two are found, with the largest summed IoU.
    HandCase(
        "two_of_three",
        "11.22.33 ........",
        "11122... ........",
        (0.6, 0.8),
        2 * 4 / 11,
        (0.6, 0.8, None),
    ),
)
CASES = {case.name: case for case in HAND_CASES}
