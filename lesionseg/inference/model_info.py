"""Lines of `info` about a model: labels, input, memory, training, operating points."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from lesionseg.config import is_url
from lesionseg.core import Geometry, Selection
from lesionseg.inference.bundle import bundle_digest, bundle_plan, bundle_selection
from lesionseg.inference.model_card import fill
from lesionseg.inference.read_ahead import needed_bytes
from lesionseg.io.bundle_folder import BundleFiles
from lesionseg.io.layouts.nnunet import DATASET_JSON
from lesionseg.io.model_address import find_model, local_model
from lesionseg.models.build import ARCHITECTURES, build_network
from lesionseg.plan.plan import Plan

_SIDES = {2: 2048, 3: 256}  # of the scan for which memory is estimated, by its number of axes
_TEXT = """\
Model:   {{ info.path }}, digest {{ info.digest }}
Marks:   {% for name in plan.labels.names %}
{{ name }} (mask value {{ plan.labels.channel_values[loop.index0] | join(", ") }})\
{{ ", " if not loop.last }}{% endfor %}

Input:   {{ modality }}, {{ plan.dims }}-D; {{ plan.channel_names | join(", ") }}\
{{ " in this order" if plan.channel_names | length > 1 }}\
{{ "; one channel may be missing" if plan.may_lack }}
Values:  {{ (plan.nnunet or plan).normalisation | map(attribute="scheme") | unique | join(", ") }}
Grid:    {{ plan.spacing_mm | map("number") | join(" × ") }} mm, tiles of \
{{ plan.tile_shape | join(" × ") }} voxels
Network: {{ plan.architecture.title }}\
{% if info.n_weights %}, {{ (info.n_weights / 1e6) | number }} million weights{% endif %}\
{% if selection.n_members > 1 %}; the mean of {{ selection.n_members }} networks{% endif %}

Memory:  {{ info.memory_gb | number }} GB for a scan of {{ info.memory_shape | join(" × ") }} \
voxels of this grid,
         and about 0.5 GB for program and network
{% if selection.point %}
{% set point = selection.point %}
Point:   {{ point.name }}: candidates are accepted from score {{ point.score | number }}
{% if point.chosen_on %}
         on {{ point.chosen_on }} scans of {{ point.n_patients or "unknown" }} patients: recall \
{{ point.lesion_recall | number }}, {{ point.false_positives_per_case | number }} false positives \
per case
{% endif %}
Others:  {{ selection.operating_points[1:] | map(attribute="name") | join(", ") or "none" }}
{% else %}
Point:   none was chosen: candidates are accepted from score 0.5
{% endif %}
Trained: {{ info.training or "not stated" }}
Licence: {{ info.card_fields.get("license") or info.card_fields.get("licence") or "not stated" }}
Card:    {{ info.card or "none" }}
"""
# the details of the training that a model card, or the dataset.json of nnU-Net, may state
_TRAINING = {
    "made from": "",
    "training_patients": "patients: ",
    "training_scans": "scans: ",
    "numTraining": "scans: ",
    "dataset": "dataset ",
    "name": "dataset ",
    "date": "on ",
}


@dataclass(frozen=True)
class ModelInfo:
    """The details of a model.

    Attributes:
        path: The folder of the bundle, the nnU-Net model as the user named it, or the address.
        digest: Its digest, as in the files of predictions.
        plan: Its plan.
        selection: The choices made after training. That of an nnU-Net model states only its number
            of networks.
        n_weights: Number of weights of each network. None if its class is not ours.
        card_fields: The details in its model card, or in the `dataset.json` of nnU-Net.
        card: The model card. None if there is none.
    """

    path: str | Path
    digest: str
    plan: Plan
    selection: Selection
    n_weights: int | None
    card_fields: Mapping[str, Any]
    card: Path | None

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """The shape of a typical scan on the plan's grid, for the estimate of memory.

        The shape is 2048 × 2048 pixels, or 256 × 256 × 256 voxels.
        """
        return (_SIDES[self.plan.dims],) * self.plan.dims

    @property
    def memory_gb(self) -> float:
        """The peak memory in 10⁹ bytes to predict a scan of `memory_shape`, without the network."""
        typical_grid = Geometry.from_spacing(self.memory_shape, self.plan.spacing_mm)
        return needed_bytes(typical_grid, self.plan) / 1e9

    @property
    def training(self) -> str:
        """The details of the training data that the model card states, as one line of text.

        The text is "" if the card states none.
        """
        card_fields = self.card_fields
        return ", ".join(
            f"{prefix}{card_fields[key]}" for key, prefix in _TRAINING.items() if key in card_fields
        )

    def record(self) -> dict[str, Any]:
        """Return the details by name, for output as JSON.

        The dict contains the attributes (`card_fields` is named "stated"), `memory_gb`,
        `memory_shape` and the name of the default operating point, or None if no point was chosen.
        "plan" and "selection" are dicts with the content of their JSON files. "path" and "card"
        may be `Path` objects.
        """
        return {
            "path": self.path,
            "digest": self.digest,
            "plan": json.loads(self.plan.to_json()),
            "selection": json.loads(self.selection.to_json()),
            "operating_point": point.name if (point := self.selection.point) else None,
            "n_weights": self.n_weights,
            "memory_gb": self.memory_gb,
            "memory_shape": self.memory_shape,
            "stated": self.card_fields,
            "card": self.card,
        }

    def lines(self) -> list[str]:
        """Return the details as lines of text, to be printed for a person."""
        return fill(_TEXT, plan=self.plan, selection=self.selection, info=self).splitlines()


def model_info(bundle: str | PathLike[str]) -> ModelInfo:
    """Collect the details of a model that a user wants to know before the first prediction.

    The weights are read, because the digest depends on them.

    Args:
        bundle: Folder of a bundle or a run, an nnU-Net model, or the address of a model, which is
            downloaded.

    Raises:
        BundleError: If there is no model, or its files are damaged.
        LesionsegError: If the model cannot be downloaded (`local_model`).
    """
    path = local_model(bundle)
    plan = bundle_plan(path)
    files = find_model(path)
    if isinstance(files, BundleFiles):
        path = files.folder
        card_fields = files.card_fields()
    else:  # an nnU-Net model has no card
        card_fields = {"made from": plan.reasons["source"], **files.read_json(DATASET_JSON)}
    # count the weights of our own architectures; the meta device builds them without memory
    n_weights = None
    if plan.architecture.name in ARCHITECTURES and not plan.architecture.network:
        with torch.device("meta"):
            n_weights = sum(weight.numel() for weight in build_network(plan).parameters())
    card = BundleFiles(path).card
    return ModelInfo(
        path=str(bundle) if is_url(str(bundle)) else path,
        digest=bundle_digest(path),
        plan=plan,
        selection=bundle_selection(path),
        n_weights=n_weights,
        card_fields=card_fields,
        card=card if card.is_file() else None,
    )
