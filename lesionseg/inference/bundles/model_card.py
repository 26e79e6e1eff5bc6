"""The model card: what a bundle is, how well it did and what it is not for, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from lesionseg.core import UNKNOWN_ROLE, OperatingPoint
from lesionseg.plan.plan import Plan

_CAUTIONS = {
    "test": "not used in training",
    "external": "not used in training",
    UNKNOWN_ROLE: "their role was not stated: they may have been used in training",
}


def model_card(
    plan: Plan,
    scores: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Model card of a network trained by `plan`.

    `scores` is the content of a `scores.json`, `provenance` whatever is known of the run (version,
    date, data, seed); each may be missing, and the card says so. Values that are undefined are
    written as such, never as a number.
    """
    sections = {
        "Purpose": _purpose(plan),
        "Input": _input(plan),
        "Output": _output(plan),
        "Performance": _performance(scores),
        "Decisions": [f"- {name}: {reason}" for name, reason in sorted(plan.reasons.items())],
        "Provenance": [f"- {name}: {value}" for name, value in (provenance or {}).items()],
    }
    parts = [f"# Lesion model: {', '.join(plan.label_names)}"]
    for title, lines in sections.items():
        parts.append(f"## {title}\n\n" + ("\n".join(lines) or "Not recorded."))
    return "\n\n".join(parts) + "\n"


def _purpose(plan: Plan) -> list[str]:
    return [
        f"Marks {', '.join(plan.label_names)} in {_MODALITIES[plan.modality]}, as an aid to "
        "research. It is no medical device, gives no diagnosis and must not be used in the care "
        "of patients without the validation and approval that this requires. Scans that differ "
        "from the training data in scanner, protocol or population may give worse results than "
        "those stated here.",
    ]


_MODALITIES = {"mri": "MRI", "ct": "CT", "xray": "X-ray images"}


def _input(plan: Plan) -> list[str]:
    spacing = " × ".join(f"{s:g}" for s in plan.spacing_mm)
    return [
        f"- channels, in this order: {', '.join(plan.channel_names)}",
        f"- spatial axes: {plan.dims}",
        f"- resampled to {spacing} mm, in tiles of {_times(plan.tile_shape)} voxels",
        f"- network: {plan.architecture.network.get('_target_', plan.architecture.name)}, "
        f"features {_listed(plan.architecture.features)}"
        + (f"; the mean of {plan.n_members}" if plan.n_members > 1 else ""),
    ]


def _output(plan: Plan) -> list[str]:
    points = [_point(p) for p in plan.operating_points]
    return [
        *_mask_values(plan),
        f"- candidates from score {plan.candidate_rule.floor:g}, each with its extent",
        *(points or ["- no operating point was chosen; accepted from score 0.5"]),
        _probability(plan),
    ]


def _point(point: OperatingPoint) -> str:
    """A point's score, what it gave where it was chosen, and what to expect elsewhere."""
    line = f"- operating point {point.name}: accepted from score {point.score:.3g}"
    line += f", chosen on {point.chosen_on} data" if point.chosen_on else ""
    line += f" by match rule {point.match_rule}" if point.match_rule else ""
    if point.lesion_recall is None or point.false_positives_per_case is None:
        return line
    recall = _with_interval(point.lesion_recall, point.lesion_recall_ci95)
    false = _with_interval(point.false_positives_per_case, point.false_positives_per_case_ci95)
    line += f"; there, lesion recall {recall} with {false} false positives per case"
    if point.expected_recall is None or point.expected_false_positives_per_case is None:
        return line
    expected = _with_interval(
        point.expected_false_positives_per_case, point.expected_false_positives_per_case_ci95
    )
    return f"{line}; to expect: {point.expected_recall:.3g} with {expected}"


def _with_interval(value: float, ci95: tuple[float, float] | None) -> str:
    return f"{value:.3g}" + (f" ({_interval(ci95)})" if ci95 else "")


def _probability(plan: Plan) -> str:
    fit = plan.calibration
    if fit is None:
        return "- scores are not calibrated: they rank candidates and are no probabilities"
    return (
        f"- each candidate's probability: {fit.kind} calibration of its score, fitted on "
        f"{fit.n_true} true and {fit.n_false} false candidates of {fit.fitted_on} data"
    )


def _mask_values(plan: Plan) -> list[str]:
    pairs = list(zip(plan.label_values, plan.label_names, strict=True))
    if not plan.regions:
        return [f"- mask value {value}: {name}" for value, name in pairs]
    return [
        *(
            f"- region {name}: mask values {_listed(values)}, painted as {painted}"
            for (painted, name), values in zip(pairs, plan.regions, strict=True)
        ),
        "- a lesion is what touches, of whatever region; later regions are painted over earlier",
    ]


def _performance(scores: Mapping[str, Any] | None) -> list[str]:
    if scores is None:
        return ["Not evaluated."]
    role = str(scores.get("evaluated_on"))
    caution = _CAUTIONS.get(role, "development data: optimistic")
    rows = {
        "cases": scores.get("n_cases"),
        "lesions": scores.get("n_lesions"),
        "lesion recall": _part(scores, "lesion_recall", "value"),
        "lesion recall, 95 % confidence": _interval(_part(scores, "lesion_recall", "ci95")),
        "false positives per case": scores.get("false_positives_per_case"),
        "Dice, mean of cases with a lesion": _part(scores, "dice", "mean"),
        "CPM (mean recall of the FROC)": scores.get("cpm"),
    }
    table = [f"| {name} | {_number(value)} |" for name, value in rows.items()]
    return [f"On {role} data ({caution}).", "", "| score | value |", "|---|---|", *table]


def _part(scores: Mapping[str, Any], name: str, key: str) -> Any:
    value = scores.get(name)
    return value.get(key) if isinstance(value, Mapping) else value


def _interval(value: Any) -> str | None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    return " to ".join(_number(v) for v in value)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "undefined" if value is None or isinstance(value, Mapping) else str(value)


def _times(values: Sequence[int]) -> str:
    return " × ".join(str(v) for v in values)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(v) for v in values)
