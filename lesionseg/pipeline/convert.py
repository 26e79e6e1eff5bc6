"""nnU-Net model to a bundle: operating points from its cross-validation, refused replacement."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lesionseg.config import has_config
from lesionseg.core import Selection
from lesionseg.core.selection import OPERATING_POINT
from lesionseg.errors import ConfigError, OutputError, count
from lesionseg.evaluation import OperatingPointAim, find_preset
from lesionseg.evaluation.operating_points import OUT_OF_FOLD
from lesionseg.evaluation.selection import select
from lesionseg.inference.bundle import Bundle, bundle_plan, write_bundle
from lesionseg.inference.model_card import model_card
from lesionseg.io.bundle_folder import BundleFiles
from lesionseg.io.layouts import ReadingRules
from lesionseg.pipeline.development import development_predictions, development_tables
from lesionseg.pipeline.score_cases import MatchOptions
from lesionseg.version import __version__

log = logging.getLogger(__name__)

_MIRRORED = "nnU-Net validates with mirrored views, so these points need inference.flips=true."


def write_own_bundle(
    bundle: Bundle,
    folder: Path,
    digest: str,
    choose: Callable[[Selection], Selection] | None = None,
) -> Selection:
    """Convert a loaded nnU-Net model to a lesionseg bundle, and return the bundle's selection.

    The bundle consists of the weights as safetensors, the plan, the selection (operating points and
    calibration) and a model card. With new operating points and an nnU-Net that mirrors, the
    selection records that the points are valid only for prediction with mirrored views.

    Args:
        bundle: The networks of the nnU-Net model.
        folder: The folder of the new bundle.
        digest: The digest of the nnU-Net model, for the model card.
        choose: Adds operating points to the selection, as `select_on_validation` does. None keeps
            the operating points of the nnU-Net model's bundle.

    Raises:
        ConfigError: If the bundle is already a lesionseg bundle.
        OutputError: If a trained model would be replaced, or the bundle cannot be written.
        LesionsegError: If `choose` raises it.
    """
    plan = bundle.plan
    if plan.nnunet is None:
        raise ConfigError("format=bundle: this is a bundle already. Use it as bundle=.")
    _require_no_training(folder)
    selection = bundle.selection
    if choose is not None:
        selection = choose(selection)
    if choose is not None and plan.nnunet.mirror_axes:
        why = f"{selection.reasons[OPERATING_POINT]} {_MIRRORED}"
        reasons = {**selection.reasons, OPERATING_POINT: why}
        selection = replace(selection, is_mirrored=True, reasons=reasons)
    provenance = {"lesionseg": __version__, "made from": plan.reasons["source"], "digest": digest}
    card = model_card(plan, selection, provenance=provenance)
    write_bundle(folder, bundle.networks, plan, card, selection=selection)
    return selection


def _require_no_training(folder: Path) -> None:
    """Raise `OutputError` if the new bundle would replace a bundle that lesionseg has trained.

    Such a bundle would be replaced if the parent of `folder` is a run directory, or if `folder`
    contains a bundle that is not a converted nnU-Net model.
    """
    has_bundle = BundleFiles(folder).plan.is_file()
    if has_config(folder.parent) or (has_bundle and bundle_plan(folder).nnunet is None):
        raise OutputError(
            f"output={folder.parent}: this folder contains a trained model, whose bundle would be "
            "replaced. Choose another folder."
        )


def select_on_validation(
    selection: Selection,
    *,
    models: Sequence[str],
    reference: Path,
    operating_point: str,
    rate_confidence: float | None,
    group: str | None,
) -> Selection:
    """Choose operating points and calibration on the predictions of nnU-Net's cross-validation.

    nnU-Net writes the predictions of each fold's validation cases to `fold_<number>/validation`.

    Args:
        selection: The selection so far. The points and the calibration are added to it.
        models: The nnU-Net model folder, as the only item.
        reference: The folder with the masks of the validation cases.
        operating_point: The requested operating point, such as `fp_per_case:1`.
        rate_confidence: The confidence of the upper bound of the expected rate of false positives;
            None for no upper bound.
        group: A regular expression that finds the patient in a case id.

    Raises:
        ConfigError: If there are several models, a zip or an address, if there are no predictions
            or they lack probabilities, or if the operating point cannot be parsed.
        DatasetError: If there is only the fold `all`, if two folds validated the same case, or if
            no prediction has a reference or can be matched.
    """
    aim = OperatingPointAim.parse(operating_point)
    if len(models) != 1:
        raise ConfigError(
            "format=bundle: reference= needs a single model folder. Give one as bundle=, or leave "
            "reference= out."
        )
    folder = Path(models[0])
    if not folder.is_dir():
        raise ConfigError(
            f"bundle={folder}: operating points need the folder with fold_0/validation. Give the "
            "model folder, or leave reference= out."
        )
    refusal = ConfigError(
        f"bundle={folder}: fold_*/validation has no probabilities (<case>.npz). Write them "
        "with nnUNetv2_train … --val --npz for each fold, or leave reference= out."
    )
    if not [*folder.glob("validation"), *folder.glob("fold_*/validation")]:
        raise refusal
    # the files exist, but each case also needs a fold and probabilities
    predictions = development_predictions(folder)
    if not predictions.fold_of or not all(f.probabilities for f in predictions.files.values()):
        raise refusal
    tables = development_tables(
        predictions,
        reference,
        MatchOptions(find_preset("lesionseg"), by_image=True),
        ReadingRules(grid_of_image=True),  # nnU-Net only warns of other headers
        group,
    )
    log.info("Operating points are chosen on %s.", count(len(tables.cases), "validation case"))
    complete, _ = select(  # the calibrations of single folds are not needed
        tables,
        selection,
        aim,
        rate_confidence,
        chosen_on=OUT_OF_FOLD,
        fold_of={case: predictions.fold_of[case] for case in tables.cases["case"]},
    )
    return complete
