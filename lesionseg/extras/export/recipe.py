"""`export`: write a network as ONNX, MONAI layout or bundle; file names, printed difference."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.data import require_trusted
from lesionseg.errors import ConfigError
from lesionseg.evaluation import list_points
from lesionseg.extras.export.formats import (
    INFERENCE_CONFIG,
    METADATA,
    PROGRAM,
    README,
    inference_config,
    largest_difference,
    metadata,
    monai_readme,
    onnx_note,
    output_names,
    trace,
    write_onnx,
    write_program,
)
from lesionseg.extras.export.settings import ExportConfig
from lesionseg.inference import Bundle, ensemble, joint_digest
from lesionseg.io import atomic_path, read_card, write_json, write_text
from lesionseg.models import NetworkFactory
from lesionseg.pipeline import (
    Outcome,
    hold_lock,
    predict_command,
    select_on_validation,
    write_own_bundle,
)

BUNDLE = "bundle"  # as in the folder of a run
ONNX = "model.onnx"
ONNX_NOTE = "model.json"


@dataclass(frozen=True)
class ExportOutcome(Outcome):
    """A network that was written for another program, or as a bundle.

    Attributes:
        output: The file or folder of the network.
        difference: The largest difference from the bundle's own probabilities; 0 for a bundle.
        lines: Further details of the export.
        command: The command that uses the network; None if there is none.
    """

    output: Path
    difference: float
    lines: tuple[str, ...]
    command: str | None

    def record(self) -> dict[str, Any]:
        """Return `output` and `difference` by name, for output as JSON."""
        return {"output": self.output, "difference": self.difference}

    def summary(self) -> list[str]:
        """Return the lines that the command prints: what was written, and further details."""
        return [f"Wrote:   {self.output}", *self.lines]

    @property
    def next(self) -> str | None:
        """The command that the user may run next; None if there is none."""
        return self.command


@hold_lock("output")
def export(
    cfg: ExportConfig, *, architectures: Mapping[str, NetworkFactory] | None = None
) -> ExportOutcome:
    """Write a bundle's network, or the mean of several networks, so that other programs can run it.

    The setting `format` chooses the output:

    - `onnx`: `model.onnx`, and `model.json` with the steps before and after the network.
    - `monai`: a folder that `monai.bundle` runs.
    - `bundle`: a bundle of lesionseg made from an nnU-Net model. If `cfg.reference` is given,
      operating points are chosen on the model's own predictions of its validation cases.

    The written network of `onnx` and `monai` is run on a random tile and compared with the bundle.

    Args:
        cfg: The settings.
        architectures: The caller's factories for networks, by their names in the plan.

    Raises:
        BundleError: If the bundle cannot be used.
        ConfigError: If a package is missing, if the network cannot be exported in this format, or
            if the reference cannot be used with these settings.
        DatasetError: If operating points cannot be chosen on these references.
        OutputError: If the result differs from the bundle's, or would replace a trained model.
    """
    bundle = ensemble(cfg.bundle, architectures, trust=cfg.trust)
    digest = joint_digest(cfg.bundle)
    if cfg.format == "onnx":
        return _export_onnx(cfg, bundle, digest)
    if cfg.format == "monai":
        return _export_monai(cfg, bundle, digest)
    folder = Path(cfg.output)
    choose = None  # chooses operating points for the new bundle
    if cfg.reference is not None:
        choose = partial(
            select_on_validation,
            models=cfg.bundle,
            reference=Path(cfg.reference),
            operating_point=cfg.operating_point,
            rate_confidence=cfg.rate_confidence,
            group=cfg.group,
        )
    selection = write_own_bundle(bundle, folder / BUNDLE, digest, choose)
    command = predict_command(folder, is_mirrored=selection.is_mirrored)
    lines = tuple(list_points(selection.operating_points))
    return ExportOutcome(output=folder / BUNDLE, difference=0.0, lines=lines, command=command)


def _export_onnx(cfg: ExportConfig, bundle: Bundle, digest: str) -> ExportOutcome:
    """Write `model.onnx`, and `model.json` with the steps before and after the network.

    Args:
        cfg: The settings.
        bundle: The bundle to export.
        digest: Identifies the bundle in `model.json`.

    Raises:
        ConfigError: If the extra `export` is missing, or the network cannot be exported.
        OutputError: If the result differs from the bundle's. An earlier export stays.
    """
    folder = Path(cfg.output)
    program = trace(bundle)
    with atomic_path(folder / ONNX) as path:
        run = write_onnx(path, program, cfg.opset, output_names(bundle.plan))
        difference = largest_difference(bundle, run)
    write_json(folder / ONNX_NOTE, onnx_note(bundle, digest, cfg.opset, difference))
    lines = (
        _describe_difference(difference, bundle),
        f"Read:    {folder / ONNX_NOTE}, with the steps before and after it",
    )
    return ExportOutcome(output=folder / ONNX, difference=difference, lines=lines, command=None)


def _export_monai(cfg: ExportConfig, bundle: Bundle, digest: str) -> ExportOutcome:
    """Write a folder in MONAI's bundle layout, which `monai.bundle` runs without lesionseg.

    Args:
        cfg: The settings.
        bundle: The bundle to export.
        digest: Identifies the bundle in the metadata.

    Raises:
        ConfigError: If MONAI has no classes for the model, or would run classes that the settings
            do not trust.
        OutputError: If the result differs from the bundle's. An earlier export stays.
    """
    plan = bundle.plan
    if plan.anchors is not None:
        raise ConfigError(
            f"format=monai: {plan.architecture.name} predicts boxes. Use format=onnx."
        )
    if plan.nnunet is not None:
        raise ConfigError(
            "format=monai: MONAI has no transforms for nnU-Net's preparation. Use format=onnx "
            "or format=bundle."
        )
    if not cfg.trust:
        require_trusted(plan.prepare_extra, "plan.json")  # MONAI would run these classes
    folder = Path(cfg.output)
    config = folder / INFERENCE_CONFIG
    program = trace(bundle)
    with atomic_path(folder / PROGRAM) as path:
        difference = largest_difference(bundle, write_program(path, program))
    write_json(config, inference_config(plan, bundle.selection.voxel_calibration))
    write_json(folder / METADATA, metadata(plan, digest))
    write_text(folder / README, monai_readme(plan, read_card(cfg.bundle[0])))
    # the user replaces SCANS by the folder of the scans
    arguments = {"bundle_root": str(folder), "config_file": str(config), "dataset_dir": "SCANS"}
    # `python -m monai.bundle` would need another package, fire
    code = f"from monai.bundle import run; run(**{json.dumps(arguments)})"
    command = f"python -c {shlex.quote(code)}  # to {folder / 'eval'}"
    return ExportOutcome(
        output=config,
        difference=difference,
        lines=(_describe_difference(difference, bundle),),
        command=command,
    )


def _describe_difference(difference: float, bundle: Bundle) -> str:
    """Return the printed line that states the largest difference of probabilities to the bundle."""
    near = f"within {difference:.2g} of" if difference else "equal to"
    # the calibration follows the network, behind the average over tiles
    when = " before calibration" if bundle.selection.voxel_calibration is not None else ""
    # indented as the text after "Read:    "
    return f"         its probabilities{when} are {near} the bundle's"
