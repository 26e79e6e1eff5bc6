import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lesionseg.core import OperatingPoint, Selection
from lesionseg.errors import BundleError, ConfigError, OutputError
from lesionseg.inference.bundle import (
    Bundle,
    bundle_digest,
    ensemble,
    read_bundle,
    resolve_bundle,
    write_bundle,
)
from lesionseg.models.build import build_network
from lesionseg.plan.plan import AnchorPlan, Plan
from tests.inference.networks import Bright


@pytest.fixture
def folder(tmp_path, plan):
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "# card\n")
    return tmp_path / "bundle"


def test_a_bundle_read_back_is_the_same_networks_and_plan(folder, plan):
    before = bundle_digest(folder)
    selection = Selection((OperatingPoint("fp_per_case:1", 0.3, "validation"),))
    members = [build_network(plan, seed=seed) for seed in (5, 6, 7)]
    write_bundle(folder, members, plan, "# card\n", selection=selection)
    back, whole = read_bundle(folder), bundle_digest(folder)
    assert back.plan == plan
    assert back.selection == replace(selection, n_members=3)
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    for network, member in zip(back.networks, members, strict=True):
        assert not network.training
        with torch.inference_mode():
            assert torch.equal(network(image)[0], member.eval()(image)[0])
    (folder / "weights_1.safetensors").unlink()
    assert len({before, whole, bundle_digest(folder)}) == 3
    with pytest.raises(BundleError):
        read_bundle(folder)


def test_an_old_bundle_is_replaced_as_a_whole_or_stays(folder, plan, monkeypatch):
    (folder / "stale.txt").write_text("old")
    write_bundle(folder, build_network(plan, seed=9), plan, "# new\n")
    names = ["model_card.md", "plan.json", "selection.json", "weights.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1  # who reads the plan, reads all
    after = bundle_digest(folder)

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("lesionseg.inference.bundle.save_file", full)
    with pytest.raises(OutputError):
        write_bundle(folder, build_network(plan), plan, "")
    assert bundle_digest(folder) == after
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_a_run_means_the_bundle_inside(folder, plan):
    (folder.parent / "plan.json").write_text(plan.to_json())
    assert resolve_bundle(folder.parent) == resolve_bundle(folder) == folder
    for wrong in (folder.parent.parent, folder / "absent"):
        with pytest.raises(BundleError):
            resolve_bundle(wrong)


class _Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_in_place_of_safetensors_stays_unopened(folder, write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write({"a": _Trap()}, folder / "weights.safetensors")
    with pytest.raises(BundleError):
        read_bundle(folder)
    assert not Path("sprung").exists()


def test_weights_whose_header_s_length_begins_like_a_pickle_are_read(folder, plan):
    tensors, path = build_network(plan).state_dict(), folder / "weights.safetensors"
    for n in range(0, 256, 8):  # headers are padded to 8 bytes
        save_file(tensors, path, metadata={"note": "x" * n})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert read_bundle(folder).plan == plan


def test_tensors_that_do_not_fit_are_named(folder, plan):
    tensors = {name: t.clone() for name, t in build_network(plan).state_dict().items()}
    missing, odd, endless = sorted(tensors)[:3]
    del tensors[missing]
    tensors |= {"unknown": torch.zeros(1), odd: torch.zeros(7, 7)}
    tensors[endless] = tensors[endless] * float("nan")
    for names in ((endless,), (missing, odd, "unknown")):
        save_file(tensors, folder / "weights.safetensors")
        with pytest.raises(BundleError) as caught:
            read_bundle(folder)
        assert all(name in str(caught.value) for name in names)
        tensors[endless] = build_network(plan).state_dict()[endless]


def test_damaged_files_are_an_error(folder):
    plan, selection, weights = (
        folder / name for name in ("plan.json", "selection.json", "weights.safetensors")
    )
    damage = [(weights, weights.read_bytes()[:-100])]
    for path in (plan, selection):
        newer = json.dumps({**json.loads(path.read_text()), "schema_version": 99}).encode()
        damage += [(path, newer), (path, b"\xff\xfe\x00")]
    for path, content in damage:
        sound = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(BundleError):
            read_bundle(folder)
        path.write_bytes(sound)
    read_bundle(folder)


def old_bundle(folder, tmp_path):
    """Make a bundle of version 1.0, whose plan.json contains the selection, too."""
    old = Path(__file__).parents[1] / "plan" / "plan_schema_1.json"
    plan = Plan.from_json(old.read_text("utf-8"))
    write_bundle(folder, build_network(plan), plan, "# card\n")
    (folder / "selection.json").unlink()
    shutil.copy(old, folder / "plan.json")
    return plan, Selection.from_json(old.read_text("utf-8"))


def test_a_bundle_of_version_1_0_is_read_with_its_selection(folder, tmp_path):
    plan, selection = old_bundle(folder, tmp_path)
    found = read_bundle(folder)
    assert (found.plan, found.selection) == (plan, selection)
    assert len(selection.operating_points) == 9
    assert selection.voxel_calibration is not None


def test_a_bundle_without_its_selection_is_an_error(folder):
    (folder / "selection.json").unlink()
    with pytest.raises(BundleError, match=r"no selection\.json\. Copy the bundle again"):
        read_bundle(folder)


def test_a_network_of_ones_own_is_passed_as_an_object_and_never_imported(tmp_path, plan):
    named = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "b", Bright(3.0, 2.0), named, "")
    network = read_bundle(tmp_path / "b", {"mine": lambda _: Bright(0.0, 0.0)}).networks[0]
    assert isinstance(network, Bright)
    assert network.level.item() == 3.0
    with pytest.raises(ConfigError):
        read_bundle(tmp_path / "b")


def test_members_of_an_ensemble_share_grid_and_labels(plan):
    bundles = [Bundle((build_network(plan),), plan) for _ in range(2)]
    assert ensemble(bundles).selection.n_members == 2
    for other in ({"spacing_mm": (2.0, 2.0, 2.0)}, {"anchors": AnchorPlan((1,), ())}):
        with pytest.raises(BundleError, match=f"number 2 has another {next(iter(other))}"):
            ensemble([bundles[0], replace(bundles[1], plan=replace(plan, **other))])
    with pytest.raises(BundleError):
        ensemble([])
