"""`model=auto` becomes a model once, before planning, and a run keeps its model."""

import numpy as np
import pytest
import yaml

from lesionseg.cli import run
from lesionseg.cli.compose import compose
from lesionseg.config import ModelConfig, TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.text import read_json, write_json
from lesionseg.models import build_network
from lesionseg.pipeline.chosen_model import keep_choices_of_run, model_for, with_choices
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.run_dir import check_config, config_of, save_config
from lesionseg.plan.model_choice import ReferenceKinds
from lesionseg.plan.plan import AnchorPlan
from tests.models.plans import plan_of
from tests.pipeline.cases import write_array

SIDE = 64


def write_films(root, *, masks, n=5):
    """Write films with one lesion each as COCO: boxes, and masks of a shape if it is given."""
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nodule"}]}
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    for i in range(n):
        top, left = rng.integers(4, 30, size=2).tolist()
        height, width = rng.integers(14, 30, size=2).tolist()
        y = (rows - top) / height * 2 - 1
        x = (columns - left) / width * 2 - 1
        mask = y**2 + x**2 <= 1
        if masks == "lesion":
            mask &= y + x < 0.4
        film = rng.integers(0, 90, size=mask.shape) + 90 * mask
        name = f"film_{i:04d}.png"
        write_array(root / "images" / name, film.astype(np.uint8))
        image = {"id": i, "file_name": name}
        lesion = {"id": i, "image_id": i, "category_id": 1, "bbox": [left, top, width, height]}
        if masks is not None:
            write_array(root / "masks" / name, mask.astype(np.uint8))
            image["mask_file"] = name
            lesion["mask_label"] = 1
        content["images"].append(image)
        content["annotations"].append(lesion)
    write_json(root / "annotations.json", content)
    return root


@pytest.mark.parametrize(
    ("masks", "model"), [(None, "retinanet"), ("ellipse", "retina_unet"), ("lesion", "unet")]
)
def test_references_determine_the_model_of_a_run(run_command, tmp_path, capsys, masks, model):
    run_dir = tmp_path / "run"
    raw = write_films(tmp_path / "raw", masks=masks)
    command = [f"data.root={raw}", f"run_dir={run_dir}", "model.tile_shape=[64,64]"]
    for _ in range(2):  # the second command resumes the first one
        assert run("prepare", command) == 0
        plan = read_json(run_dir / "plan.json")
        assert plan["architecture"]["name"] == model
        assert plan["reasons"]["model"].startswith(f"{model}, because")
        assert f"model: {model}, because" in capsys.readouterr().out
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert saved["model"]["architecture"] == model
    assert f"chooses: {model}, because" in run_command("prepare", [*command, "check=true"]).out
    assert f"{model}, because" in (run_dir / "dataset_report.html").read_text()


def test_a_named_model_is_obeyed(tmp_path):
    raw = write_films(tmp_path / "raw", masks="ellipse")
    command = [f"data.root={raw}", f"run_dir={tmp_path / 'run'}", "model.tile_shape=[64,64]"]
    assert run("prepare", [*command, "model=unet"]) == 0
    plan = read_json(tmp_path / "run" / "plan.json")
    assert plan["architecture"]["name"] == "unet"
    assert "model" not in plan["reasons"]


@pytest.mark.parametrize(
    ("section", "key", "kept", "other"),
    [("model", "architecture", "residual_unet", "unet"), ("optim", "lr", 0.003, 0.02)],
)
def test_run_keeps_its_choice_if_the_configuration_says_auto(tmp_path, section, key, kept, other):
    asked, first, changed = (
        TrainConfig.of(data={"root": "x"}, **{section: {key: value}})
        for value in ("auto", kept, other)
    )
    assert keep_choices_of_run(asked, tmp_path) == asked
    save_config(tmp_path, config_of(first))
    found = keep_choices_of_run(asked, tmp_path)
    assert getattr(getattr(found, section), key) == kept
    check_config(tmp_path, config_of(found))
    with pytest.raises(ConfigError, match=f"{kept} → {other}"):
        check_config(tmp_path, config_of(keep_choices_of_run(changed, tmp_path)))


def test_every_process_keeps_the_learning_rate_of_the_run(tmp_path):
    raw = write_films(tmp_path / "raw", masks="ellipse")
    asked = compose("train", [f"data.root={raw}"])
    save_config(tmp_path / "run", config_of(with_choices(asked, "auto", 0.003)))
    opened = Experiment.open(asked, tmp_path / "run").on_this_process(asked)
    assert (asked.optim.lr, opened.cfg.optim.lr) == ("auto", 0.003)


def test_training_from_a_bundle_uses_the_model_of_the_bundle(tmp_path):
    anchors = AnchorPlan((1,), sizes=(((4.0, 4.0), (6.0, 6.0)),), width=8, depth=1)
    plan = plan_of("retina_unet", anchors=anchors)
    write_bundle(tmp_path / "run" / "bundle", build_network(plan), plan, "")
    model = ModelConfig.of(init_from=str(tmp_path / "run"))
    masks = ReferenceKinds(dims=2, n_with_lesions=4)
    boxes = ReferenceKinds(dims=2, n_with_lesions=4, n_boxed=4)
    assert model_for(model, masks).value == "retina_unet"
    assert model_for(model, boxes).value == "retinanet"
    named = model_for(model.model_copy(update={"architecture": "unet"}), masks)
    assert (named.value, named.reason) == ("unet", "")
