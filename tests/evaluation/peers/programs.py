"""Score cases with challenges' own programs; runs in the peers' environment (`make peers`).

python programs.py cases.npz scores.json FOLDER

`FOLDER` holds the checkouts that `programs.txt` names. What they call of old versions of NumPy and
pandas is put back here; nothing of theirs is changed.
"""

import json
import sys
import tempfile
import warnings
from lib2to3 import refactor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import nibabel
import numpy as np
import pandas as pd
from score import defined, read

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
warnings.simplefilter("ignore")
np.float = float  # noqa: NPY001 - ISLES'22 was written for NumPy 1
pd.DataFrame.append = lambda self, other: pd.concat([self, other])
_replace = pd.DataFrame.replace


def replace(table, old, new, inplace=False):
    """As pandas 1 did it: columns that hold arrays are left alone."""
    arrays = [name for name in table if any(isinstance(x, np.ndarray) for x in table[name])]
    if not arrays:
        return _replace(table, old, new, inplace=inplace)
    return _replace(table.drop(columns=arrays), old, new).join(table[arrays])


pd.DataFrame.replace = replace


def main(source, target, folder):
    cases = read(source)
    for program in (
        *("isles22/utils", "autopet", "brats2023", "nndetection"),
        "luna16/evaluationScript",
    ):
        sys.path.append(str(Path(folder) / program))
    scores = {
        name: {case: plain(score(arrays)) for case, arrays in cases.items()}
        for name, score in MASK_PROGRAMS.items()
    }
    scores |= {"nndetection": plain(nndetection(cases)), "luna16": plain(luna16(cases))}
    Path(target).write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n")


def plain(values):
    return {name: defined(lambda value=value: value) for name, value in values.items()}


def isles22(case):
    import eval_utils as program

    masks = case["reference"].astype(bool), case["instances"] > 0
    ml = np.float64(np.prod(case["spacing"]) / 1000)
    return {
        "dice": program.compute_dice(*masks),
        "lesion_f1": program.compute_lesion_f1_score(*masks),
        "volume_difference_ml": program.compute_absolute_volume_difference(*masks, ml),
        "lesion_count_difference": program.compute_absolute_lesion_difference(*masks),
    }


def autopet(case):
    import val_script as program

    dice, false, missed = program.compute_metrics(*files(case))
    lesions = case["reference"].any()  # without any, the challenge takes the second number alone
    return {
        "dice": dice if lesions else None,
        "false_positive_volume_ml": false,
        "false_negative_volume_ml": missed if lesions else None,
    }


def brats(challenge):
    def score(case):
        import metrics as program

        reference, prediction = files(case)
        table = program.get_LesionWiseResults(prediction, reference, challenge)
        row = table[table.Labels == "WT"].iloc[0]
        return {
            "lesion_wise_dice": row.LesionWise_Score_Dice,
            "lesion_wise_hd95_mm": row.LesionWise_Score_HD95,
            "n_true_positive": row.Num_TP,
            "n_false_positive": row.Num_FP,
            "n_false_negative": row.Num_FN,
        }

    return score


def box_evaluator():
    """nnDetection's, without the rest of the package, which asks for an old torch."""
    import nndet

    for name in ("nndet.utils", "nndet.utils.info", "nndet.core", "nndet.core.boxes"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(Path(*nndet.__path__, *name.split(".")[1:]))]
    sys.modules["nndet.utils.info"].experimental = lambda function: function
    from nndet.core.boxes.ops_np import box_iou_np

    sys.modules["nndet.core.boxes"].box_iou_np = box_iou_np
    from nndet.evaluator.det import BoxEvaluator

    return BoxEvaluator.create(["lesion"], fast=True)


def nndetection(cases):
    evaluator = box_evaluator()
    for case in cases.values():
        boxes, lesions = boxes_of(case["instances"]), boxes_of(case["lesions"])
        classes = [np.zeros(len(x), int) for x in (boxes, lesions)]
        evaluator.run_online_evaluation(
            [boxes], [classes[0]], [case["scores"]], [lesions], [classes[1]]
        )
    found, curves = evaluator.finish_online_evaluation()
    values = {"map": found["mAP_IoU_0.10_0.50_0.05_MaxDet_100"]}
    for iou in (0.1, 0.5):
        values[f"ap_{iou:g}"] = found[f"AP_IoU_{iou:.2f}_MaxDet_100"]
        values[f"froc_{iou:g}"] = found[f"FROC_score_IoU_{iou:.2f}"]
        curve = curves[f"FROC_curve_IoU_{iou:.2f}"]
        for rate, value in zip(RATES, curve, strict=True):
            values[f"sensitivity_at_{rate:g}_fp_{iou:g}"] = value
    return values


def luna_program():
    """The challenge's script, written for Python 2, as DeepLung carries it; it draws nothing."""
    script = next(
        p for folder in sys.path for p in Path(folder).glob("noduleCADEvaluationLUNA16.py")
    )
    fixers = refactor.RefactoringTool(refactor.get_fixers_from_package("lib2to3.fixes"))
    tables, program = ModuleType("tools"), ModuleType("luna16")
    tables.csvTools = SimpleNamespace(readCSV=lambda path: path)  # rows are handed over as they are
    sys.modules["tools"] = tables
    exec(str(fixers.refactor_string(script.read_text() + "\n", "luna16")), program.__dict__)
    program.plt = MagicMock()
    return program


def luna16(cases):
    program, nodules = luna_program(), {}
    results = [["seriesuid", "coordX", "coordY", "coordZ", "probability"]]
    for name, case in cases.items():
        spacing = case["spacing"]
        for score, (centre, _) in zip(
            case["scores"], balls(case["instances"], spacing), strict=True
        ):
            results.append([name, *centre, score])
        nodules[name] = [
            program.NoduleFinding(i, *centre, diameter=diameter, state="Included")
            for i, (centre, diameter) in enumerate(balls(case["lesions"], spacing))
        ]
    rates, recall, *_ = program.evaluateCAD(list(cases), results, FOLDER.name, nodules, "cad")
    found = np.interp(RATES, rates, recall)
    named = {f"sensitivity_at_{rate:g}_fp": x for rate, x in zip(RATES, found, strict=True)}
    return {"cpm": found.mean(), **named}


def balls(instances, spacing):
    """Centre and equivalent diameter of each instance, in mm."""
    for number in range(1, int(instances.max()) + 1):
        inside = np.argwhere(instances == number)
        volume = len(inside) * float(np.prod(spacing))
        yield inside.mean(axis=0) * spacing, 2 * (3 * volume / (4 * np.pi)) ** (1 / 3)


def boxes_of(instances):
    """As nnDetection orders them: the first two axes' starts, their stops, then the third axis."""
    rows = []
    for number in range(1, int(instances.max()) + 1):
        inside = np.argwhere(instances == number)
        (a, b, c), (a2, b2, c2) = inside.min(axis=0), inside.max(axis=0) + 1
        rows.append((a, b, a2, b2, c, c2))
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def files(case):
    """The two masks as files, in a folder that lives as long as the process."""
    found = []
    for name, mask in (("reference", case["reference"]), ("prediction", case["instances"] > 0)):
        image = nibabel.Nifti1Image(mask.astype(np.uint8), np.diag([*case["spacing"], 1.0]))
        found.append(f"{FOLDER.name}/{name}.nii")
        nibabel.save(image, found[-1])
    return found


FOLDER = tempfile.TemporaryDirectory()
MASK_PROGRAMS = {
    "isles22": isles22,
    "autopet": autopet,
    "brats2023": brats("BraTS-GLI"),
    "brats2023_men": brats("BraTS-MEN"),
    "brats2023_met": brats("BraTS-MET"),
}


if __name__ == "__main__":
    main(*sys.argv[1:])
