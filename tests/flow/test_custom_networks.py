"""Networks, losses and transforms of other packages are used by train, predict and export."""

from collections import Counter
from pathlib import Path

import monai.losses
import pytest
import pytorch_lightning as pl
from monai.transforms import MapTransform

from lesionseg.cli import run
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.text import read_csv
from lesionseg.models import build_network
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import TILE, plan_of, predict, train

STEPS = "trainer.max_steps=2"
TEN_LINES = "tests.models.test_custom_network.TenLines"
OWN_WIDTH = "model.base_features=null"  # the width is an argument of the network
MINE = f"model=custom model.network._target_={TEN_LINES} {TILE} {OWN_WIDTH}"
SEGRESNET = (
    "model=custom model.network._target_=monai.networks.nets.SegResNet"
    f" model.network.init_filters=8 {TILE} {OWN_WIDTH}"
)
SWIN = (
    "model=custom model.network._target_=monai.networks.nets.SwinUNETR"
    " model.network.feature_size=12 model.network.depths=[1,1,1,1]"
    f" model.tile_shape=[64,64,64] {OWN_WIDTH}"
)
SWIN_BACKBONE = (
    "model=retinanet model.backbone._target_=monai.networks.nets.swin_unetr.SwinTransformer"
    " model.backbone.in_chans=1 model.backbone.embed_dim=12 model.backbone.window_size=[4,4,4]"
    " model.backbone.patch_size=[2,2,2] model.backbone.depths=[1,1,1,1]"
    f" model.backbone.num_heads=[1,1,2,2] model.tile_shape=[64,64,64] {OWN_WIDTH}"
)


class Steps(pl.Callback):
    """A callback that records each step."""

    def __init__(self, file):
        self.file = Path(file)

    def on_train_batch_end(self, trainer, *_):
        with self.file.open("a") as stream:
            stream.write(f"{trainer.global_step}\n")


class Recorded(MapTransform):
    """A transform that records each call and returns its input unchanged."""

    def __init__(self, keys, file):
        super().__init__(keys)
        self.file = Path(file)

    def __call__(self, data):
        with self.file.open("a") as stream:
            stream.write(",".join(f"{key} {data[key].ndim}" for key in self.keys) + "\n")
        return data


RECORDED = f"_target_: {__name__}.Recorded"


def read_lines(file):
    return file.read_text().splitlines()


@pytest.fixture(scope="session")
def raw(once):
    def make(folder):
        write_mri_phantoms(folder, 4, seed=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0))

    return once("foreign", make)


def test_network_loss_transforms_callback_and_logger_of_others_are_called(
    raw, tmp_path, monkeypatch, capsys
):
    calls = Counter()

    class Counted(monai.losses.DiceFocalLoss):
        def forward(self, *given):
            calls["loss", self.lambda_focal] += 1
            return super().forward(*given)

    monkeypatch.setattr(monai.losses, "DiceFocalLoss", Counted)
    tiles = tmp_path / "tiles"
    images = tmp_path / "images"
    steps = tmp_path / "steps"
    logs = tmp_path / "logs"
    logger = "_target_: pytorch_lightning.loggers.CSVLogger, version: ''"
    run_dir = train(
        raw,
        tmp_path / "run",
        *MINE.split(),
        "model.network.width=6",
        "loss=custom",
        "loss._target_=monai.losses.DiceFocalLoss",
        "loss.lambda_focal=2",
        f"augment.extra=[{{{RECORDED}, keys: [image, label], file: '{tiles}'}}]",
        f"prepare.extra=[{{{RECORDED}, keys: [image], file: '{images}'}}]",
        f"callbacks=[{{_target_: {__name__}.Steps, file: '{steps}'}}]",
        f"logger=[{{{logger}, save_dir: '{logs}'}}]",
        STEPS,
    )
    assert "input=SCANS output=FOUND trust=true" in capsys.readouterr().out
    assert calls["loss", 2] > 2  # the check before training, and two steps
    assert len(read_lines(tiles)) >= 4  # two tiles per step
    assert set(read_lines(tiles)) == {"image 4,label 4,instances 4,valid 4"}
    assert len(read_lines(images)) >= 4  # each training or validation case
    assert read_lines(steps) == ["1", "2"]
    (metrics,) = logs.rglob("metrics.csv")
    assert read_csv(metrics)
    plan = plan_of(run_dir / "bundle")
    assert plan["architecture"]["network"] == {"_target_": TEN_LINES, "width": 6}
    assert not predict(run_dir, raw / "imagesTr", tmp_path / "masks", status=1)
    assert TEN_LINES in capsys.readouterr().err
    assert run("export", [f"bundle={run_dir}", f"output={tmp_path / 'onnx'}"]) == 1
    predict(run_dir, raw / "imagesTr", tmp_path / "masks", "trust=true")


def test_weights_and_biases_logs_a_training_offline(raw, tmp_path):
    pytest.importorskip("wandb")
    logger = "_target_: pytorch_lightning.loggers.WandbLogger, offline: true"
    setting = f"logger=[{{{logger}, save_dir: '{tmp_path}'}}]"
    train(raw, tmp_path / "run", *MINE.split(), setting, STEPS)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert log.stat().st_size > 0


def test_transforms_of_a_bundle_are_called_only_with_trust(raw, plan, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    calls = tmp_path / "calls"
    spec = {"_target_": f"{__name__}.Recorded", "keys": ["image"], "file": str(calls)}
    plan = plan.with_(prepare_extra=(spec,), spacing_mm=(5.0, 5.0, 5.0))
    write_bundle(bundle, build_network(plan), plan, "")
    scan = raw / "imagesTr" / "SIM_000_0000.nii.gz"
    predict(bundle, scan, tmp_path / "out", status=1)
    assert spec["_target_"] in capsys.readouterr().err
    assert not calls.exists()
    predict(bundle, scan, tmp_path / "out", "trust=true")
    assert read_lines(calls) == ["image 4"]
    settings = [f"bundle={bundle}", f"output={tmp_path / 'monai'}", "format=monai"]
    assert run("export", settings) == 1
    assert run("export", [*settings, "trust=true"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", [MINE, SEGRESNET, SWIN, SWIN_BACKBONE])
def test_custom_networks_train_predict_and_export(raw, tmp_path, model):
    if "swin" in model:
        pytest.importorskip("einops")
    run_dir = train(raw, tmp_path / "run", *model.split(), STEPS)
    network = plan_of(run_dir / "bundle")["architecture"]["network"]
    assert f"._target_={network['_target_']} " in model
    scan = raw / "imagesTr" / "SIM_000_0000.nii.gz"
    (row,) = predict(run_dir, scan, tmp_path / "masks", "trust=true").values()
    assert row["status"] == "done"
    assert run("export", [f"bundle={run_dir}", f"output={tmp_path / 'onnx'}", "trust=true"]) == 0
