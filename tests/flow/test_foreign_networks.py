"""Networks and losses of others through the public commands: train, predict, export."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import monai.losses
import monai.metrics
import monai.transforms
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lesionseg.cli import run
from lesionseg.io.files import read_csv
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms
from tests.flow.test_end_to_end import SMALL

TEN_LINES = "tests.models.test_foreign_network.TenLines"
SWIN = (
    "model=custom model.network._target_=monai.networks.nets.SwinUNETR"
    " model.network.feature_size=12 model.network.depths=[1,1,1,1]"
    " model.tile_shape=[64,64,64]"
)
SWIN_BACKBONE = (
    "model=retinanet model.backbone._target_=monai.networks.nets.swin_unetr.SwinTransformer"
    " model.backbone.in_chans=1 model.backbone.embed_dim=12 model.backbone.window_size=[4,4,4]"
    " model.backbone.patch_size=[2,2,2] model.backbone.depths=[1,1,1,1]"
    " model.backbone.num_heads=[1,1,2,2] model.tile_shape=[64,64,64]"
)


class ResNetMaps(nn.Module):
    """Torchvision's ResNet-18 as a backbone: maps of 1/4, 1/8 and 1/16 of the tile."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        from torchvision.models import resnet18
        from torchvision.models.feature_extraction import create_feature_extractor

        network = resnet18()
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.maps = create_feature_extractor(network, ["layer1", "layer2", "layer3"])

    def forward(self, image: Tensor) -> Any:
        return self.maps(image)


class Scored(pl.Callback):
    """Writes MONAI's Dice of the network on one tile after each step."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        metric = monai.metrics.DiceMetric()
        with torch.no_grad():
            (logits, *_) = pl_module.network(torch.zeros(1, 1, 16, 16, 16))
        metric(y_pred=(logits > 0).float(), y=torch.ones_like(logits))
        with self.file.open("a") as stream:
            stream.write(f"{metric.aggregate().item()}\n")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "raw"
    write_mri_phantoms(folder, 4, seed=0, n_test=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0))
    return folder


def trained(raw: Path, folder: Path, *overrides: str) -> Path:
    given = [f"data.root={raw}", f"run_dir={folder}", *SMALL, "trainer.max_steps=2", *overrides]
    assert run("train", given) == 0
    return folder


def predicted(bundle: Path, raw: Path, output: Path, *overrides: str) -> int:
    scan = sorted((raw / "imagesTr").glob("*_0000.nii.gz"))[0]
    return run("predict", [f"bundle={bundle}", f"input={scan}", f"output={output}", *overrides])


def test_a_network_loss_transform_metric_callback_and_logger_of_others_are_called(
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: Counter[str] = Counter()

    class Counted(monai.losses.DiceFocalLoss):
        def forward(self, *given: Any) -> Any:
            calls["loss"] += 1
            return super().forward(*given)

    class Shifted(monai.transforms.RandShiftIntensityd):
        def __call__(self, *given: Any) -> Any:
            calls["transform"] += 1
            return super().__call__(*given)

    monkeypatch.setattr(monai.losses, "DiceFocalLoss", Counted)
    monkeypatch.setattr(monai.transforms, "RandShiftIntensityd", Shifted)
    logs, scored = tmp_path / "logs", tmp_path / "scored"
    logger = f"_target_: pytorch_lightning.loggers.CSVLogger, save_dir: '{logs}', version: ''"
    bundle = trained(
        raw,
        tmp_path / "run",
        "model=custom",
        f"model.network._target_={TEN_LINES}",
        "model.network.width=6",
        "model.tile_shape=[16,16,16]",
        "loss=custom",
        "loss._target_=monai.losses.DiceFocalLoss",
        "loss.lambda_focal=2",
        "augment.extra=[{_target_: monai.transforms.RandShiftIntensityd, keys: image, offsets: 1}]",
        f"callbacks=[{{_target_: {__name__}.Scored, file: '{scored}'}}]",
        f"logger=[{{{logger}}}]",
    )
    assert calls["loss"] > 2  # the check before, and two steps
    assert calls["transform"] >= 4  # two tiles a step
    assert len(scored.read_text().split()) == 2  # MONAI's metric, by a callback of one's own
    (told,) = logs.rglob("metrics.csv")
    assert read_csv(told)
    plan = json.loads((bundle / "bundle" / "plan.json").read_text(encoding="utf-8"))
    assert plan["architecture"]["network"] == {"_target_": TEN_LINES, "width": 6}
    assert predicted(bundle, raw, tmp_path / "refused") == 1
    assert f"{TEN_LINES} would be imported" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    assert predicted(bundle, raw, tmp_path / "masks", "trust=true") == 0
    assert run("export", [f"bundle={bundle}", f"output={tmp_path / 'onnx'}"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        f"model=custom model.network._target_={TEN_LINES} model.tile_shape=[16,16,16]",
        "model=custom model.network._target_=monai.networks.nets.SegResNet"
        " model.network.init_filters=8 model.tile_shape=[16,16,16]",
        SWIN,
        SWIN_BACKBONE,
    ],
)
def test_monai_s_networks_train_predict_and_export(raw: Path, tmp_path: Path, model: str) -> None:
    if "swin" in model:
        pytest.importorskip("einops")
    bundle = trained(raw, tmp_path / "run", *model.split())
    assert (bundle / "report.html").is_file()
    trust = [] if "_target_" not in model else ["trust=true"]
    assert predicted(bundle, raw, tmp_path / "masks", *trust) == 0
    assert run("export", [f"bundle={bundle}", f"output={tmp_path / 'onnx'}", *trust]) == 0


@pytest.mark.slow
def test_a_backbone_of_torchvision_trains_predicts_and_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    raw = tmp_path / "raw"
    write_xray_phantoms(raw, 6, seed=0, shape=(128, 128), pixel_mm=2.8)
    backbone = f"model.backbone._target_={__name__}.ResNetMaps"
    bundle = trained(raw, tmp_path / "run", "model=retinanet", backbone, "model.tile_shape=[64,64]")
    assert (bundle / "report.html").is_file()
    output = tmp_path / "out"
    scans = [f"bundle={bundle}", f"input={raw / 'images'}", f"output={output}", "trust=true"]
    assert run("predict", scans) == 0
    assert run("export", [f"bundle={bundle}", f"output={tmp_path / 'onnx'}", "trust=true"]) == 0
