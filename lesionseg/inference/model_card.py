"""The model card (README.md of a bundle): its text, score table, metadata for Hugging Face.

It begins with the metadata that the Hugging Face Hub reads, so that a bundle is a repository there.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jinja2 import Environment, StrictUndefined

from lesionseg.core import UNKNOWN_ROLE, Selection
from lesionseg.evaluation.operating_points import describe_expected_recall, exceeds_aim
from lesionseg.evaluation.scores import Scores
from lesionseg.plan.plan import Plan

_CAUTIONS = {
    "test": "not used in training",
    "external": "not used in training",
    UNKNOWN_ROLE: "their role was not stated: they may have been used in training",
}
_MODALITIES = {"mri": "MRI", "ct": "CT", "xray": "X-ray images", "colour": "colour pictures"}
_METRICS = {  # those of the metadata, which the Hub shows
    "lesion_recall": "lesion recall",
    "false_positives_per_case": "false positives per case",
    "dice": "Dice, mean of cases with a lesion",
    "cpm": "CPM (mean recall of the FROC)",
}
_CARD = """\
# Lesion model: {{ plan.labels.names | join(", ") }}

## Purpose

Marks {{ plan.labels.names | join(", ") }} in {{ modality }}, as an aid to research. It is not a \
medical device, gives no diagnosis and must not be used in the care of patients without the \
required validation and approval. Scans that differ from the training data in scanner, \
protocol or population may give worse results than those stated here.

## Input

- channels, in this order: {{ plan.channel_names | join(", ") }}
- spatial axes: {{ plan.dims }}
- resampled to {{ plan.spacing_mm | map("number") | join(" × ") }} mm, in tiles of \
{{ plan.tile_shape | join(" × ") }} voxels
- network: {{ plan.architecture.title }}\
{% if plan.architecture.name != "custom" %}, \
features {{ plan.architecture.features | join(", ") }}{% endif %}\
{% if selection.n_members > 1 %}; the mean of {{ selection.n_members }}{% endif %}


## Output

{% for value, name in plan.labels.value_names.items() %}
{% if plan.labels.regions %}
- region {{ name }}: mask values {{ plan.labels.regions[loop.index0] | join(", ") }}, \
painted as {{ value }}
{% else %}
- mask value {{ value }}: {{ name }}
{% endif %}
{% endfor %}
{% if plan.labels.regions %}
- a lesion is a connected component of all regions together; later regions are painted over \
earlier ones
{% endif %}
{% if plan.candidate_rule.source == "detection" %}
- candidates are boxes from score {{ plan.box_floor | number }}
{% elif plan.candidate_rule.source == "both" %}
- candidates from voxels of score {{ plan.candidate_rule.floor | number }} and from boxes of score \
{{ plan.box_floor | number }}; a candidate of only one of them has half its score
{% else %}
- candidates from score {{ plan.candidate_rule.floor | number }}, each with its extent
{% endif %}
{% for p in selection.operating_points %}
- operating point {{ p.name }}: accepted from score {{ p.score | number }}\
{% if p.chosen_on %}, chosen on {{ p.chosen_on }} data{% endif %}\
{% if p.lesion_recall is not none %}; there, lesion recall \
{{ p.lesion_recall | interval(p.lesion_recall_ci95) }} with \
{{ p.false_positives_per_case | interval(p.false_positives_per_case_ci95) }} false positives per \
case{% endif %}\
{% if p.expected_false_positives_per_case is not none %}, and \
{{ p.expected_false_positives_per_case | number }} expected on new cases\
{% if p is beyond_aim %} (more than the aim: too few cases to expect less){% endif %}{% endif %}\
{% if p | expected_recall %}. {{ (p | expected_recall)[:-1] }}{% endif %}

{% else %}
- no operating point was chosen; accepted from score 0.5
{% endfor %}
{% set fit = selection.calibration %}
{% if fit %}
- each candidate's probability: Platt calibration of its score, fitted on \
{{ fit.n_true }} true and {{ fit.n_false }} false candidates of {{ fit.fitted_on }} data
{% else %}
- scores are not calibrated: they rank candidates, but are not probabilities
{% endif %}

## Performance

{% for role, caution, numbers in performance %}
On {{ role }} data ({{ caution }}).

| score | value |
|---|---|
{% for name, value in numbers %}
| {{ name }} | {{ value | number }} |
{% endfor %}

{% else %}
Not evaluated.

{% endfor %}
## Decisions

{% for name, reason in reasons | dictsort %}
- {{ name }}: {{ reason }}
{% else %}
Not recorded.
{% endfor %}

## Provenance

{% for name, value in provenance.items() %}
- {{ name }}: {{ value }}
{% else %}
Not recorded.
{% endfor %}
"""


def model_card(
    plan: Plan,
    selection: Selection,
    scores: Sequence[Scores] = (),
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Compose the model card of a trained network, the README.md of its bundle.

    Args:
        plan: Plan of the network.
        selection: Choices made after training.
        scores: Scores of the network, one entry per role of cases (validation, test, …). Empty if
            the network was not evaluated.
        provenance: Version, date, data and seed of the run, shown in the given order. None if they
            are unknown.

    Returns:
        The card in Markdown, after the metadata in YAML. Undefined scores are called "undefined",
        and the metadata leaves them out.
    """
    provenance_rows = provenance or {}
    return _metadata(plan, scores, str(provenance_rows.get("dataset", "unknown"))) + fill(
        _CARD,
        plan=plan,
        selection=selection,
        reasons={**plan.reasons, **selection.reasons},
        performance=[  # role, caution and rows
            (
                scores_of_role.evaluated_on,
                _CAUTIONS.get(scores_of_role.evaluated_on, "development data: optimistic"),
                _performance_rows(scores_of_role),
            )
            for scores_of_role in scores
        ],
        provenance=provenance_rows,
    )


def _metadata(plan: Plan, scores: Sequence[Scores], dataset: str) -> str:
    """Compose the metadata at the top of a model card, which the Hugging Face Hub reads.

    The metadata is YAML between two lines "---", with the keys that
    https://huggingface.co/docs/hub/model-cards defines. Each line has one key. Its value is a word,
    or JSON, which is valid YAML.

    Args:
        plan: Plan of the network.
        scores: Scores of the network, one entry per role of cases. Undefined scores are left out.
        dataset: Name of the training dataset.
    """
    has_masks = plan.candidate_rule.source != "detection"
    task = "image-segmentation" if has_masks else "object-detection"
    results = [
        {
            "task": {"type": task},
            "dataset": {"name": dataset, "type": dataset, "split": scores_of_role.evaluated_on},
            "metrics": metrics,
        }
        for scores_of_role in scores
        if (metrics := _hub_metrics(scores_of_role))
    ]
    metadata: dict[str, Any] = {
        "license": "unknown",
        "library_name": "lesionseg",
        "pipeline_tag": task,
        "tags": ["medical", "lesion-detection", "focal-loss", plan.modality, f"{plan.dims}d"],
    }
    if results:
        name = f"Lesion model: {', '.join(plan.labels.names)}"
        metadata["model-index"] = [{"name": name, "results": results}]
    dump = partial(json.dumps, ensure_ascii=False)
    texts = {key: v if isinstance(v, str) else dump(v) for key, v in metadata.items()}
    return "\n".join(["---", *[f"{key}: {text}" for key, text in texts.items()], "---", "", ""])


def _hub_metrics(scores: Scores) -> list[dict[str, Any]]:
    """Return the main scores as dicts with the keys that the Hugging Face Hub expects of a metric.

    Undefined scores are left out. The keys are "type", "name" and "value" (four decimals).
    """
    values = {name: scores[name].value for name in _METRICS}
    return [
        {"type": name, "name": _METRICS[name], "value": round(value, 4)}
        for name, value in values.items()
        if value is not None
    ]


def fill(template: str, *, plan: Plan, **values: object) -> str:
    """Fill a Jinja template about a model, for the model card and for `ModelInfo.lines`.

    Besides `values`, the template can use `plan`, the words for its modality (`modality`), the
    filters `number`, `interval` and `expected_recall`, and the test `beyond_aim`.

    Args:
        template: Text of the template. A variable without a value is an error.
        plan: Plan of the model.
        **values: Further variables of the template.
    """
    # blocks leave no empty lines, and a variable without a value raises an error
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["number"] = _format_number
    environment.tests["beyond_aim"] = exceeds_aim
    environment.filters["expected_recall"] = describe_expected_recall
    environment.filters["interval"] = _format_with_interval
    modality = _MODALITIES[plan.modality]
    return environment.from_string(template).render(plan=plan, modality=modality, **values)


def _performance_rows(scores: Scores) -> list[tuple[str, float | Sequence[float] | None]]:
    """Return the rows (name, value) of the card's table of performance for one role of cases.

    An undefined score is None. A confidence interval is a pair of its limits.
    """
    return [
        ("cases", scores.count("n_cases")),
        ("lesions", scores.count("n_lesions")),
        *((title, scores[name].value) for name, title in _METRICS.items()),
        ("lesion recall, 95 % confidence", scores["lesion_recall"].ci95),
    ]


def _format_with_interval(value: float, ci95: Sequence[float] | None) -> str:
    """Format a score and its 95 % confidence interval, such as "0.8 (0.7 to 0.9)".

    If `ci95` is None or empty, only the score is returned.
    """
    return f"{_format_number(value)} ({_format_number(ci95)})" if ci95 else _format_number(value)


def _format_number(value: float | Sequence[float] | None) -> str:
    """Format a number for the card, or an interval as "low to high".

    A float has three significant digits, and an int all its digits. None gives "undefined".
    """
    if value is None:
        return "undefined"
    if isinstance(value, Sequence):
        return " to ".join(map(_format_number, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
