"""A user's transforms are called by `train` and `predict`, and those of a stranger's bundle asked
for."""

import json
from pathlib import Path
from typing import Any

import pytest
from monai.transforms import MapTransform

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.test_end_to_end import SMALL


class Recorded(MapTransform):
    """Writes down each call, and leaves everything as it was."""

    def __init__(self, keys: Any, file: str) -> None:
        super().__init__(keys)
        self.file = Path(file)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        with self.file.open("a") as stream:
            stream.write(",".join(f"{key} {data[key].ndim}" for key in self.keys) + "\n")
        return data


def calls(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_configured_transforms_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "run"
    tiles, images, later = (tmp_path / name for name in ("tiles", "images", "later"))
    write_mri_phantoms(raw, 4, seed=0, n_test=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0))
    name = f"{Recorded.__module__}.{Recorded.__name__}"
    overrides = [
        *(f"data.root={raw}", f"run_dir={folder}", *SMALL),
        *("trainer.max_steps=3", "trainer.workers=1", "model.tile_shape=[16,16,16]"),
        f"augment.extra=[{{_target_: {name}, keys: [image, label], file: '{tiles}'}}]",
        f"prepare.extra=[{{_target_: {name}, keys: [image], file: '{images}'}}]",
    ]
    assert run("train", overrides) == 0
    assert len(calls(tiles)) >= 6  # two tiles a step
    assert set(calls(tiles)) == {"image 4,label 4,instances 4,valid 4"}
    assert len(calls(images)) >= 4  # each case, to train or to validate
    plan = json.loads((folder / "bundle" / "plan.json").read_text())
    assert [spec["_target_"] for spec in plan["prepare_extra"]] == [name]

    # the bundle is another's now
    plan["prepare_extra"][0]["file"] = str(later)
    (folder / "bundle" / "plan.json").write_text(json.dumps(plan))
    scans = [f"bundle={folder}", f"input={raw / 'imagesTr'}", f"output={tmp_path / 'out'}"]
    capsys.readouterr()
    assert run("predict", scans) == 1
    assert name in capsys.readouterr().err
    assert calls(later) == []
    assert run("predict", [*scans, "trust=true"]) == 0
    assert calls(later) == ["image 4"] * 4
