"""The data settings, the survey's refusals, and simulated datasets."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.cli import run
from lesionseg.config import DataConfig
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.pipeline.dataset import SETTINGS, may_lack, simulate_once, take_survey


def test_a_scan_may_lack_a_channel_where_training_leaves_some_out() -> None:
    channels = ("FLAIR", "T1")
    some, none = DataConfig.of(channel_dropout=0.3), DataConfig.of()
    assert [may_lack(data, channels) for data in (none, some)] == [False, True]
    with pytest.raises(ConfigError, match="the only channel"):
        may_lack(some, ("FLAIR",))


@pytest.mark.parametrize(
    "settings",
    [{"channel_dropout": 1.0}, {"n_folds": 1}, {"fold": -1}, {"fold": "any"}],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}: "):
        DataConfig.of(**settings)


def boxed(root: Path, box: tuple[int, int, int, int] = (8, 10, 9, 8)) -> Path:
    """Four radiographs of 32 by 32 as COCO boxes, one of them lesion-free."""
    (root / "images").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((32, 32), 90, np.uint8)).save(root / "images" / f"{number}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 32, "height": 32} for i in range(4)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [*box]} for i in range(1, 4)
        ],
        "categories": [{"id": 1, "name": "n"}],
    }
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("model", ["unet", "retina_unet"])
def test_boxes_alone_teach_no_voxels(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, folder = boxed(tmp_path / "raw"), tmp_path / "run"
    assert run("train", [f"data.root={root}", f"run_dir={folder}", f"model={model}"]) == 1
    assert "case 1: 1 boxes" in capsys.readouterr().err
    assert not folder.exists()


def test_every_bad_case_is_named(tmp_path: Path) -> None:
    root = boxed(tmp_path / "raw", box=(40, 40, 5, 5))
    with pytest.raises(DatasetError, match=r"3 cases cannot be used") as error:
        take_survey(DataConfig.of(root=root), seed=0)
    assert str(error.value).count("outside") == 3


def test_a_set_without_lesions_or_references_is_refused(tmp_path: Path) -> None:
    root = boxed(tmp_path / "raw")
    content = json.loads((root / "annotations.json").read_text())
    (root / "annotations.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(DatasetError, match="no lesion in any of the 4 references"):
        take_survey(DataConfig.of(root=root), seed=0)
    (root / "manifest.csv").write_text("case,image\na,images/0.png\n")
    with pytest.raises(DatasetError, match="none of the 1 cases has a reference"):
        take_survey(DataConfig.of(root=root), seed=0)


def write(folder: Path, n_cases: int, *, progress: Callable[[str, int, int], None]) -> None:
    folder.mkdir()
    for done in range(n_cases):
        (folder / str(done)).touch()
        progress(str(done), done + 1, n_cases)


def interrupted(folder: Path, *, progress: Callable[[str, int, int], None]) -> None:
    folder.mkdir()
    raise KeyboardInterrupt


def test_a_dataset_is_simulated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesionseg.phantoms.write_mri_phantoms", write)
    root = tmp_path / "new" / "set"
    simulate_once(root, {"kind": "mri", "n_cases": 2})
    assert sorted(p.name for p in root.iterdir()) == ["0", "1", SETTINGS]
    (root / "0").unlink()
    simulate_once(root, {"kind": "mri", "n_cases": 2})
    assert not (root / "0").exists()
    with pytest.raises(ConfigError, match="simulated with other settings"):
        simulate_once(root, {"kind": "mri", "n_cases": 3})


def test_an_interrupted_simulation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesionseg.phantoms.write_ct_phantoms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate_once(tmp_path / "set", {"kind": "ct"})
    assert list(tmp_path.iterdir()) == []


def test_phantoms_name_a_setting_that_they_do_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'contrast'"):
        simulate_once(tmp_path / "set", {"kind": "mri", "contrst": 2})
    with pytest.raises(ConfigError, match="not mri, ct or xray"):
        simulate_once(tmp_path / "set", {"kind": "pet"})
