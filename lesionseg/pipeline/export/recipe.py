"""Export: a bundle for other programs, as ONNX or in MONAI's layout."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lesionseg import __version__
from lesionseg.data.transforms import refuse_strangers
from lesionseg.errors import ConfigError, one_of
from lesionseg.inference.bundles import monai_bundle
from lesionseg.inference.bundles.bundle import CARD, Bundle, bundle_digest, resolve_bundle
from lesionseg.inference.bundles.ensemble import ensemble
from lesionseg.inference.bundles.network_export import (
    BOXES,
    INPUT,
    OPSET,
    PROBABILITIES,
    SCORES,
    largest_difference,
    output_names,
    trace,
    write_onnx,
    write_program,
)
from lesionseg.inference.candidates.box_candidates import MOST_IN_A_TILE, SAME_LESION_IN_A_TILE
from lesionseg.io.atomic import write_json, write_text
from lesionseg.io.folder_locks import locks
from lesionseg.models.build import NetworkFactory, trusting
from lesionseg.models.retinanet import planned_anchors
from lesionseg.pipeline.run.outcome import CommandOutcome
from lesionseg.plan.plan import Plan

Format = Literal["onnx", "monai"]
ONNX, ONNX_NOTE = "model.onnx", "model.json"


@dataclass(frozen=True)
class ExportOutcome(CommandOutcome):
    """What was written, and how far its probabilities are from the bundle's own (random tiles)."""

    folder: Path
    format: Format
    largest_difference: float

    def summary(self) -> list[str]:
        """Where it lies and what was checked."""
        return [
            f"Exported as {self.format}: {self.folder}",
            f"Largest difference from the bundle's probabilities: {self.largest_difference:.2g}",
        ]


@locks("output")
def export(
    bundle: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    format: Format = "onnx",
    opset: int = OPSET,
    trust: bool = False,
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> ExportOutcome:
    """Write a bundle's network, or the mean of several, so that other programs can run it.

    `onnx`: `model.onnx` and `model.json`, which says what has to be done around it. `monai`: a
    folder that `monai.bundle` runs. What was written is run on a random tile and compared with the
    bundle. `trust`: classes that the bundle names may be imported. Raises `BundleError` for an
    unusable bundle, `ConfigError` for an unknown format, a missing package or a network that cannot
    be exported, `OutputError` when the result differs.
    """
    one_of("format", format, get_args(Format), where="format")
    given = (bundle,) if isinstance(bundle, (str, Path)) else tuple(bundle)
    read, folder = ensemble(given, trusting(trust, architectures)), Path(output)
    digest = "+".join(bundle_digest(Path(b)) for b in given)
    if format == "onnx":
        difference = _write_onnx(folder, read, digest, opset)
    else:
        difference = _write_monai(folder, read, digest)
        card = resolve_bundle(Path(given[0])) / CARD
        write_text(folder / monai_bundle.README, card.read_text("utf-8") if card.is_file() else "")
    return ExportOutcome(folder, format, difference)


def _write_onnx(folder: Path, bundle: Bundle, digest: str, opset: int) -> float:
    run = write_onnx(folder / ONNX, trace(bundle), opset, output_names(bundle.plan))
    difference = largest_difference(bundle, run)
    write_json(folder / ONNX_NOTE, onnx_note(bundle.plan, digest, opset, difference))
    return difference


def _write_monai(folder: Path, bundle: Bundle, digest: str) -> float:
    if bundle.plan.anchors is not None:
        raise ConfigError(
            "MONAI's layout has no boxes.",
            where="format",
            seen=f"monai, of a {bundle.plan.architecture.name}",
            expected="onnx",
        )
    refuse_strangers(bundle.plan.prepare_extra, "plan.json")  # MONAI would run them
    run = write_program(folder / monai_bundle.PROGRAM, trace(bundle))
    difference = largest_difference(bundle, run)
    write_json(folder / monai_bundle.CONFIG, monai_bundle.inference_config(bundle.plan))
    write_json(folder / monai_bundle.METADATA, monai_bundle.metadata(bundle.plan, digest))
    return difference


def onnx_note(plan: Plan, digest: str, opset: int, difference: float) -> dict[str, Any]:
    """What a program needs to know around the ONNX file: grid, intensities, tiles, output."""
    return {
        "schema_version": 1,
        "lesionseg_version": __version__,
        "bundle": digest,
        "opset": opset,
        "largest_difference": difference,
        "input": {
            "name": INPUT,
            "shape": ["batch", len(plan.channel_names), *plan.tile_shape],
            "dtype": "float32",
            "channels": list(plan.channel_names),
            "axes": ["S", "A", "R"] if plan.dims == 3 else ["row", "column"],
            "spacing_mm": list(plan.spacing_mm),
            "normalisation": [asdict(n) for n in plan.normalisation],
            "prepare_extra": [dict(spec) for spec in plan.prepare_extra],
        },
        "tiles": {
            "shape": list(plan.tile_shape),
            "overlap": 0.5,
            "outside": 0.0,
            "weight": "Gaussian, standard deviation an eighth of the tile along each axis",
        },
        **({"output": _voxels_note(plan)} if plan.has_voxels else {}),
        **({"boxes": _boxes_note(plan)} if plan.anchors else {}),
        "candidate_rule": asdict(plan.candidate_rule),
        "operating_points": [asdict(point) for point in plan.operating_points],
    }


def _voxels_note(plan: Plan) -> dict[str, Any]:
    labels = zip(plan.label_values, plan.label_names, strict=True)
    return {
        "name": PROBABILITIES,
        "shape": ["batch", len(plan.label_values), *plan.tile_shape],
        "dtype": "float32",
        "labels": [{"value": value, "name": name} for value, name in labels],
        "regions": [list(values) for values in plan.regions],
        "focal_correction": None if plan.link is None else asdict(plan.link),
    }


def _boxes_note(plan: Plan) -> dict[str, Any]:
    """Of a box per anchor; what `predict` does with them is `inference.candidates`."""
    anchors = planned_anchors(plan)
    n = sum(level.n_anchors for level in anchors.levels(plan.architecture.strides, plan.tile_shape))
    return {
        "scores": {"name": SCORES, "shape": ["batch", n, len(plan.lesion_labels)]},
        "boxes": {"name": BOXES, "shape": ["batch", n, 2 * plan.dims]},
        "dtype": "float32",
        "box": "starts, then stops, half-open, in voxels of the tile",
        "labels": [{"value": value, "name": name} for value, name in plan.lesion_labels.items()],
        "focal_correction": {"alpha": anchors.alpha, "gamma": anchors.gamma},
        "lowest_score": plan.candidate_rule.floor,
        "one_lesion_in_a_tile": {"iou": SAME_LESION_IN_A_TILE, "most": MOST_IN_A_TILE},
        "one_lesion_in_all_tiles": {"iou": anchors.merge_iou, "by": anchors.merge},
    }
