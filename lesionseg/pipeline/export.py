"""`export`: a network for other programs, as ONNX, in MONAI's layout or as a bundle."""

from collections.abc import Mapping
from pathlib import Path

from lesionseg.config import ExportConfig
from lesionseg.data.transforms import require_trusted
from lesionseg.errors import ConfigError
from lesionseg.inference.bundle import bundle_digest, ensemble
from lesionseg.inference.export import (
    CONFIG,
    METADATA,
    PROGRAM,
    README,
    inference_config,
    largest_difference,
    metadata,
    onnx_note,
    output_names,
    trace,
    write_onnx,
    write_program,
)
from lesionseg.io.bundle_folder import CARD, resolve_bundle
from lesionseg.io.files import locks, write_json, write_text
from lesionseg.models.build import NetworkFactory, trusting
from lesionseg.pipeline.convert import write_own_bundle
from lesionseg.pipeline.log import say

ONNX, ONNX_NOTE = "model.onnx", "model.json"


@locks("output")
def export(
    cfg: ExportConfig, *, architectures: Mapping[str, NetworkFactory] | None = None
) -> float:
    """Write a bundle's network, or the mean of several, so that other programs can run it.

    Return the largest difference from the bundle's own probabilities.

    `onnx`: `model.onnx` and `model.json`, which says what has to be done around it. `monai`: a
    folder that `monai.bundle` runs. What was written is run on a random tile and compared with the
    bundle. `bundle`: the weights of an nnU-Net model as safetensors beside a plan, with operating
    points of its own validation predictions if `cfg.reference` is given. Raises `BundleError` for
    an unusable bundle, `ConfigError` for a missing package or a network that cannot be exported,
    `OutputError` if the result differs.
    """
    read, folder = ensemble(cfg.bundle, trusting(cfg.trust, architectures)), Path(cfg.output)
    plan, digest = read.plan, "+".join(bundle_digest(Path(bundle)) for bundle in cfg.bundle)
    if cfg.format == "bundle":
        write_own_bundle(cfg, read, folder, digest)
        return 0.0
    if cfg.format == "onnx":
        run = write_onnx(folder / ONNX, trace(read), cfg.opset, output_names(plan))
        difference = largest_difference(read, run)
        write_json(folder / ONNX_NOTE, onnx_note(plan, digest, cfg.opset, difference))
        written, further = ONNX, f"read {folder / ONNX_NOTE}, which says what to do around it."
    else:
        if plan.anchors is not None:
            raise ConfigError(f"format=monai: {plan.architecture.name} gives boxes; use onnx.")
        if plan.nnunet is not None:
            raise ConfigError(
                "format=monai: MONAI has no transforms for nnU-Net's preparation. Use format=onnx "
                "or format=bundle."
            )
        require_trusted(plan.prepare_extra, "plan.json")  # MONAI would run them
        run = write_program(folder / PROGRAM, trace(read))
        difference = largest_difference(read, run)
        write_json(folder / CONFIG, inference_config(plan))
        write_json(folder / METADATA, metadata(plan, digest))
        card = resolve_bundle(Path(cfg.bundle[0])) / CARD
        write_text(folder / README, card.read_text("utf-8") if card.is_file() else "")
        written = CONFIG
        further = f"python -m monai.bundle run --bundle_root {folder} "
        further += f"--config_file {folder / written} --dataset_dir SCANS  # to {folder / 'eval'}"
    near = f"within {difference:.2g} of" if difference else "equal to"
    say(f"Wrote:   {folder / written} (its probabilities are {near} the bundle's)")
    say(f"Next:    {further}")
    return difference
