"""`experiment=openmind`: a training that starts from an encoder of nnssl."""

import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.cli.compose import compose
from lesionseg.core import Geometry, Volume
from lesionseg.data.preprocess_image import prepare_image
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import FINE_HEADS, TILE, plan_of, train
from tests.models.nnssl_checkpoint import nnssl_weights, pretrained_network, write_pretrained


def test_training_starts_from_a_pretrained_encoder(tmp_path, caplog, capsys):
    raw = tmp_path / "raw"
    write_mri_phantoms(raw, 4, seed=0, n_test=0, **FINE_HEADS)
    weights = nnssl_weights(pretrained_network(), with_decoder=False)
    path = write_pretrained(tmp_path / "checkpoint_final.pth", weights)
    settings = ["experiment=openmind", f"model.init_from={path}"]
    for wrong, remedy in (
        ("model.base_features=8", "model.init_from has 4. Leave out model.base_features."),
        ("model.tile_shape=[18,16,16]", "the sides must be multiples of [4, 4, 4]"),
        ("model=unet", "Set model=residual_unet."),
    ):
        assert run("train", [f"data.root={raw}", f"run_dir={tmp_path}/w", *settings, wrong]) == 2
        assert remedy in " ".join(capsys.readouterr().err.split())
    settings += [TILE, "model.spacing_mm=[4,4,4]", "trainer.max_steps=2"]
    plan = plan_of(train(raw, tmp_path / "run", *settings))
    assert plan["architecture"]["encoder_blocks"] == [1, 3, 4]
    assert plan["architecture"]["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    assert "Taken: encoder.stem (3), encoder.stages (51)." in caplog.text
    assert "Newly initialised: decoder.ups (4), decoder.stages (6)" in caplog.text
    assert (tmp_path / "run" / "bundle" / "weights.safetensors").is_file()


def test_images_are_normalised_as_in_pretraining(rng, plan):
    cfg = compose("train", ["data.root=.", "experiment=openmind"])
    assert not np.remainder(cfg.model.tile_shape, 32).any()  # the stride of ResEnc-L
    array = rng.normal(100, 10, (1, 16, 16, 16)).astype(np.float32)
    array[:, :8] = 0  # a stripped skull
    expected = (array - array.mean()) / array.std()
    volume = Volume(array, Geometry.from_spacing(array.shape[1:], plan.spacing_mm))
    prepared = prepare_image(volume, plan.with_(prepare_extra=tuple(cfg.prepare.extra)))
    assert prepared.array == pytest.approx(expected, abs=1e-4)
