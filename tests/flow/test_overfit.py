"""A detector that cannot overfit four cases has a fault between tile and score."""

import pytest

from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms
from tests.flow.cases import evaluate, plan_of, predict, train

SETTINGS = ["data.validation_fraction=0", "augment=none", "model.base_features=8"]
SETTINGS += ["trainer.max_steps=300"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "model"), [(2, "retinanet"), (3, "retinanet"), (3, "retina_unet")]
)
def test_four_cases_are_overfitted(dims, model, tmp_path):
    """Average precision is 1: every lesion has a higher score than every false positive."""
    raw = tmp_path / "raw"
    tile = [48, 48, 48] if dims == 3 else [128, 128]
    if dims == 3:
        write_mri_phantoms(
            raw,
            4,
            seed=1,
            lesion_free_share=0.25,
            shape=(48, 56, 48),
            spacing_mm=(3.0, 3.0, 3.0),
            contrast=2.0,
            n_lesions=(3, 8),
        )
    else:
        write_xray_phantoms(
            raw, 4, seed=1, shape=(128, 128), pixel_mm=2.8, contrast=3.0, n_nodules=(1, 3)
        )
    settings = [f"model={model}", f"model.tile_shape={tile}", *SETTINGS]
    run_dir = train(raw, tmp_path / "run", *settings)
    assert plan_of(run_dir)["architecture"]["name"] == model
    predict(run_dir, raw / ("imagesTr" if dims == 3 else "images"), tmp_path / "found")
    scores = evaluate(raw, tmp_path / "found", tmp_path / "s")
    assert scores["n_lesions"] > 5
    assert scores["average_precision"]["value"] == pytest.approx(1.0)
    assert scores["froc"]["recall"][0] == 1.0
