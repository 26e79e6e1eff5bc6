"""A detector that cannot learn four cases by heart has a fault somewhere between tile and score."""

import json
from pathlib import Path

import pytest

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "model"), [(2, "retinanet"), (3, "retinanet"), (3, "retina_unet")]
)
def test_four_cases_are_learnt_by_heart(dims: int, model: str, tmp_path: Path) -> None:
    """Every lesion above every false positive, one case without lesions: average precision is 1."""
    raw, tile = tmp_path / "raw", [48, 48, 48] if dims == 3 else [128, 128]
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
    training = [
        f"data.root={raw}",
        f"run_dir={tmp_path / 'run'}",
        "data.validation_fraction=0",
        "augment=none",
        f"model={model}",
        f"model.tile_shape={tile}",
        "model.batch_size=2",
        "model.base_features=8",
        "trainer.max_minutes=null",
        "trainer.max_steps=300",
        "trainer.workers=0",
        "report.pdf=false",
    ]
    assert run("train", training) == 0
    images = raw / ("imagesTr" if dims == 3 else "images")
    where = [f"bundle={tmp_path / 'run'}", f"input={images}", f"output={tmp_path / 'found'}"]
    assert run("predict", where) == 0
    scored = [f"reference={raw}", f"prediction={tmp_path / 'found'}", f"output={tmp_path / 's'}"]
    assert run("evaluate", [*scored, "replicates=20"]) == 0
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert scores["n_lesions"] > 5
    assert scores["average_precision"]["value"] == pytest.approx(1.0)
    assert scores["froc"]["recall"][0] == 1.0
