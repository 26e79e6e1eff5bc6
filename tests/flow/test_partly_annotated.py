"""Two labels, each annotated in only some cases: training, and scores by hand."""

import numpy as np
import pytest

from tests.flow.cases import TILE, evaluate, plan_of, scores_of, train, write

LESION, CYST = 1, 2


def draw_cubes(places):
    """Return a mask of cubes of 8 voxels, with labels by corner."""
    mask = np.zeros((16, 16, 16), np.uint8)
    for corner, label in places.items():
        mask[tuple(slice(a, a + 2) for a in corner)] = label
    return mask


def write_cases(root, cases):
    """Write a manifest. A case states its annotated labels and its lesions."""
    rows = ["case,image,reference,annotated"]
    rng = np.random.default_rng(0)
    for case, (annotated, places) in cases.items():
        mask = draw_cubes(places)
        image = rng.normal(size=mask.shape) + 5 * (mask == LESION) - 5 * (mask == CYST)
        write(root / f"{case}.nii.gz", image.astype(np.float32))
        write(root / f"{case}_mask.nii.gz", mask)
        rows.append(f"{case},{case}.nii.gz,{case}_mask.nii.gz,{annotated}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.json").write_text('{"1": "lesion", "2": "cyst"}')
    return root


def test_only_annotated_labels_are_scored(tmp_path):
    """Only B annotates both labels. Its lesion is a false positive, all others are ignored."""
    here = (2, 2, 2)
    there = (8, 8, 8)
    far = (12, 12, 12)
    reference = {"A": ("lesion", {here: LESION}), "B": ("", {here: CYST}), "C": ("cyst", {})}
    predicted = {
        "A": {here: LESION, there: CYST, far: CYST},
        "B": {here: CYST, there: LESION},
        "C": {there: LESION},
    }
    for case, places in predicted.items():
        write(tmp_path / "predicted" / f"{case}_mask.nii.gz", draw_cubes(places))
    root = write_cases(tmp_path / "data", reference)
    scores = evaluate(root, tmp_path / "predicted", tmp_path / "scores")
    assert (scores["n_lesions"], scores["n_true_positive"], scores["n_false_positive"]) == (2, 2, 1)
    # two half-annotated scans and a complete one; C may contain lesions that are not annotated
    assert scores["false_positives_per_case"]["value"] == 1 / 2
    assert (scores["n_cases"], scores["n_lesion_free_cases"]) == (3, 0)
    assert scores["dice"]["mean"] == pytest.approx((1 + 2 / 3) / 2)
    for name, rate in (("lesion", 1 / 2), ("cyst", 0)):
        part = scores["per_label"][name]
        assert part["false_positives_per_case"]["value"] == rate
        assert (part["n_cases"], part["lesion_recall"]["value"]) == (2, 1)


@pytest.mark.parametrize("model", ["unet", pytest.param("retina_unet", marks=pytest.mark.slow)])
def test_training_uses_cases_that_annotate_one_label_each(tmp_path, model):
    """The masks contain both labels, but only one is annotated in each case."""
    places = {(4, 4, 4): LESION, (10, 10, 10): CYST}
    cases = {f"c{i}": ("lesion" if i % 2 else "cyst", places) for i in range(6)}
    raw = write_cases(tmp_path / "data", cases)
    run_dir = train(raw, tmp_path / "run", TILE, "trainer.max_steps=6", f"model={model}")
    assert plan_of(run_dir)["architecture"]["name"] == model
    scores = scores_of(run_dir)
    assert scores["n_lesions"] == scores["n_cases"]
