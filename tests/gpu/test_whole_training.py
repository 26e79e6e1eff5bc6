"""A whole `train` on a pretend card: trial steps, fit, validation, bundle, test and report."""

import pytest

from lesionseg.cli import compose
from lesionseg.io.text import read_json
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline.train import train
from tests.gpu.pretend_cuda import pretend_cards

SETTINGS = (
    "trainer.accelerator=gpu",
    "trainer.workers=0",
    "trainer.max_steps=3",
    "trainer.validate_every_minutes=0.001",
    "report.viewer=false",
    "report.pdf=false",
    "inference.overlap=0",
    "model.tile_shape=[32,32,32]",
    "model.batch_size=2",
    "model.base_features=4",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual_unet", "retina_unet"])
def test_training_on_a_card_writes_bundle_test_and_report(name, tmp_path):
    root = tmp_path / "scans"
    run = tmp_path / "run"
    write_mri_phantoms(root, 5, seed=0, shape=(32, 40, 40), n_test=1)
    cfg = compose("train", [f"data.root={root}", f"run_dir={run}", f"model={name}", *SETTINGS])
    with pretend_cards() as cards:
        train(cfg)
    assert set(cards.ops_by_card) == {0}
    assert (run / "report.html").is_file()
    assert (run / "bundle" / "weights.safetensors").is_file()
    assert read_json(run / "scores.json")["scores"][0]["value"] > 0
    assert (run / "test" / "scores.json").is_file()
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "validation_score" in columns  # validated on the card, between steps
