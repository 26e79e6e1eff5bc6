"""Train small nnU-Nets on raw folders, and predict their test cases with nnU-Net itself.

    PYTHONPATH=. .peers/bin/python benchmarks/peers/nnunet_models.py FOLDER [MODEL ...]

Run this in the peers' environment. FOLDER/raw contains the raw folders of `nnunet_raw.py`.
Afterwards FOLDER/results contains nnU-Net's model folders. FOLDER/predicted/MODEL/plain and
…/mirrored contain the predictions of `nnUNetPredictor` for the test cases, with probabilities. A
few steps are enough, because the tests compare agreement, not accuracy.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1]).resolve()
for name in ("raw", "preprocessed", "results"):
    os.environ[f"nnUNet_{name}"] = str(FOLDER / name)
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_compile": "false"}

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.peers.torchvision_on_cpu import supply_nms  # noqa: E402

supply_nms()  # nnU-Net imports torchvision

from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # noqa: E402
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402


@dataclass(frozen=True)
class Model:
    """A model to train: dataset, configuration, planner and folds.

    If `validates` is True, nnU-Net predicts the validation cases of each fold with probabilities.
    """

    name: str
    dataset: str
    configuration: str = "3d_fullres"
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"
    folds: tuple[int, ...] = (0,)
    steps: int = 60
    validates: bool = False


RESENC: Any = {"planner": "nnUNetPlannerResEncM", "plans": "nnUNetResEncUNetMPlans"}
MODELS = (
    Model("plain_2d", "Dataset001_Heads2d", "2d"),
    Model("plain_3d_two_folds", "Dataset002_Heads", folds=(0, 1), validates=True),
    Model("resenc_stripped", "Dataset003_Stripped", **RESENC),
    Model("thick_slices", "Dataset004_Thick"),
    Model("sagittal", "Dataset005_Sagittal"),
    Model("chests", "Dataset006_Chests", steps=120),
    Model("regions", "Dataset007_Regions"),
    Model("pictures", "Dataset008_Pictures", "2d"),
    Model("reoriented", "Dataset009_Reoriented"),
    Model("resenc_2d", "Dataset005_Sagittal", "2d", **RESENC),
)
SPLITS = [  # four cases are too few for nnU-Net's five folds
    {"train": ["P02", "P03"], "val": ["P00", "P01"]},
    {"train": ["P00", "P01"], "val": ["P02", "P03"]},
]
MAX_FEATURES = 24
FIRST_FEATURES = 8


def main() -> None:
    """Train and predict the named models, or all models."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    wanted = sys.argv[2:]
    for model in MODELS:
        done = FOLDER / "predicted" / model.name / "done"
        if (wanted and model.name not in wanted) or done.exists():
            continue
        begin = time.time()
        train(model)
        predict(model)
        done.touch()
        print(f"{model.name}: {time.time() - begin:.0f} s", flush=True)


def train(model: Model) -> None:
    """Fingerprint, plan, preprocess and train all folds like nnU-Net's commands."""
    number = int(model.dataset[7:10])
    os.environ |= {"nnUNet_n_proc_DA": "1"}  # the planner does not accept 0
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=True)
    plan_experiments([number], experiment_planner_class_name=model.planner)
    path = FOLDER / "preprocessed" / model.dataset / f"{model.plans}.json"
    plans = json.loads(path.read_text())
    narrow(plans, model.configuration)
    path.write_text(json.dumps(plans))
    (path.parent / "splits_final.json").write_text(json.dumps(SPLITS))
    preprocess(
        [number],
        plans_identifier=model.plans,
        configurations=[model.configuration],
        num_processes=[1],
    )
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # no other process loads tiles
    for fold in model.folds:
        torch.manual_seed(fold)
        np.random.seed(fold)  # noqa: NPY002 - nnU-Net uses this generator
        facts = json.loads((path.parent / "dataset.json").read_text())
        plans = json.loads(path.read_text())
        plans["continue_training"] = False
        trainer = nnUNetTrainer(plans, model.configuration, fold, facts, device=torch.device("cpu"))
        trainer.num_epochs = 1
        trainer.num_iterations_per_epoch = model.steps
        trainer.num_val_iterations_per_epoch = 1
        trainer.run_training()
        if model.validates:
            trainer.perform_actual_validation(save_probabilities=True)


def narrow(plans: dict[str, Any], configuration: str) -> None:
    """Give every stage few features and the tile at most three quarters of the scan."""
    config = plans["configurations"][configuration]
    arguments = config["architecture"]["arch_kwargs"]
    n_stages = arguments["n_stages"]
    features = [min(FIRST_FEATURES * 2**i, MAX_FEATURES) for i in range(n_stages)]
    arguments["features_per_stage"] = features
    factors = np.prod(arguments["strides"], axis=0)
    patch = []
    for side, factor in zip(config["patch_size"], factors, strict=True):
        smaller = max(int(0.75 * side / factor), 2) * int(factor)
        patch.append(min(smaller, side))
    config["patch_size"] = patch
    config["batch_size"] = 2


def predict(model: Model) -> None:
    """Predict the test cases without and with mirrored views, and save the probabilities."""
    name = f"nnUNetTrainer__{model.plans}__{model.configuration}"
    trained = FOLDER / "results" / model.dataset / name
    raw = FOLDER / "raw" / model.dataset / "imagesTs"
    seconds = {}
    for kind in ("plain", "mirrored"):
        predictor = nnUNetPredictor(
            tile_step_size=0.5,
            use_gaussian=True,
            use_mirroring=kind == "mirrored",
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        predictor.initialize_from_trained_model_folder(str(trained), model.folds)
        output = FOLDER / "predicted" / model.name / kind
        output.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        predictor.predict_from_files_sequential(str(raw), str(output), save_probabilities=True)
        seconds[kind] = time.perf_counter() - begin
    facts = {
        "model": trained.relative_to(FOLDER).as_posix(),
        "images": raw.relative_to(FOLDER).as_posix(),
        "seconds": seconds,
    }
    (FOLDER / "predicted" / model.name / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
