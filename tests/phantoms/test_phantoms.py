"""Simulated scans: their references are exact, and a seed gives the same scans again."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.phantoms.visits import VisitSettings, simulate_visits, write_visit_phantoms
from lesionseg.core import Geometry
from lesionseg.errors import ConfigError
from lesionseg.io.text import read_json
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import label_components
from lesionseg.phantoms import (
    SimulatedCase,
    _write_coco,
    lesion_share,
    simulate_once,
    write_ct_phantoms,
    write_mri_phantoms,
    write_xray_phantoms,
)

SMALL = {"shape": (32, 36, 32), "spacing_mm": (4.0, 4.0, 4.0)}
write_mri = partial(write_mri_phantoms, n_lesions=(3, 8), **SMALL)
write_ct = partial(write_ct_phantoms, n_nodules=(3, 3), **SMALL)


@pytest.mark.parametrize("diameter", [3.0, 6.0, 12.0])
@pytest.mark.parametrize("spacing", [(1.5, 1.0, 2.0), (1.0, 0.5)])
def test_lesion_has_the_volume_of_its_ball(diameter, spacing):
    share = lesion_share(np.random.default_rng(1), diameter, spacing, np.zeros(len(spacing)))
    ball = np.pi / 6 * diameter**3 if len(spacing) == 3 else np.pi / 4 * diameter**2
    assert share.sum() * np.prod(spacing) == pytest.approx(ball, rel=0.05)
    assert not any(share.take(i, axis).any() for axis in range(share.ndim) for i in (0, -1))


@pytest.mark.parametrize("write", [write_mri, write_ct])
def test_folder_has_nnunets_layout_and_lesions_brighter_than_their_surroundings(write, tmp_path):
    write(tmp_path, 4, seed=1, n_test=1, lesion_free_share=0.5, contrast=2.0)
    meta = read_json(tmp_path / "dataset.json")
    assert "SIMULATED" in meta["description"]
    assert (meta["numTraining"], meta["numTest"]) == (3, 1)
    images = sorted((tmp_path / "imagesTr").iterdir())
    assert [p.name[-11:] for p in images] == ["0000.nii.gz"] * 3
    masks = [read_volume(p) for p in sorted((tmp_path / "labelsTr").iterdir())]
    assert [bool(m.array.any()) for m in masks] == [True, False, True]
    assert len(list((tmp_path / "labelsTs").iterdir())) == 1
    image = read_volume(images[0])
    assert image.geometry.matches(masks[0].geometry)
    assert image.geometry.spacing_mm == pytest.approx((4, 4, 4))
    lesion = masks[0].array[0] > 0
    near = np.roll(lesion, 3, axis=0) & ~lesion
    assert image.array[0][lesion].mean() > image.array[0][near].mean()


def test_longer_set_begins_with_the_shorter_one_and_reports_its_progress(tmp_path):
    calls = []
    write_mri(tmp_path / "one", 1, seed=2)
    write_mri(tmp_path / "two", 2, seed=2, progress=lambda *done: calls.append(done))
    assert calls == [("SIM_000", 1, 2), ("SIM_001", 2, 2)]
    one, two, other = (
        read_volume(tmp_path / f"{folder}/imagesTr/{case}_0000.nii.gz").array
        for folder, case in (("one", "SIM_000"), ("two", "SIM_000"), ("two", "SIM_001"))
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_radiographs_have_coco_annotations_that_agree_with_their_masks(tmp_path):
    write_xray_phantoms(tmp_path, 2, seed=3, shape=(96, 80), pixel_mm=3.0, lesion_free_share=0.5)
    content = read_json(tmp_path / "annotations.json")
    assert "SIMULATED" in content["info"]["description"]
    first, second = content["images"]
    assert first["patient"] != second["patient"]
    assert [first[key] for key in ("height", "width", "pixel_mm")] == [96, 80, 3.0]
    image = read_volume(tmp_path / "images" / first["file_name"])
    mask = read_volume(tmp_path / "masks" / first["file_name"])
    assert image.array.shape == mask.array.shape == (1, 96, 80)
    assert 2000 < image.array.max() <= 4095
    ids = mask.array[0]
    assert len(content["annotations"]) == ids.max() > 0
    for annotation in content["annotations"]:
        x, y, width, height = (int(v) for v in annotation["bbox"])
        here = ids == annotation["mask_label"]
        assert annotation["image_id"] == 1
        assert here[y : y + height, x : x + width].sum() == here.sum() == annotation["area"]


def test_mask_of_a_radiograph_keeps_more_than_255_nodules(tmp_path):
    ids = np.arange(300, dtype=np.int32).reshape(20, 15)
    geometry = Geometry.from_spacing(ids.shape, (1.0, 1.0))
    case = SimulatedCase("a", np.zeros(ids.shape), ids, geometry)
    _write_coco(tmp_path, [case], "", 1.0)
    np.testing.assert_array_equal(read_volume(tmp_path / "masks" / "a.png").array[0], ids)


def test_two_visits_differ_by_the_stated_changes_only(tmp_path):
    settings = VisitSettings(n_lesions=(3, 0, 0, 0, 4), diameter_mm=(4, 7))
    scans, masks = simulate_visits(np.random.default_rng(0), settings)
    new = masks["new"] > 0
    np.testing.assert_array_equal(masks["after"] - masks["before"], masks["new"])
    assert label_components(new).max() == 3
    before, after = (scan[new].mean() / scan.mean() for scan in scans.values())
    assert after > 1.2 * before
    for fates, factor in (((0, 0, 1, 0, 0), 1.5**3), ((0, 0, 0, 1, 0), 1.5**-3)):
        changed = replace(settings, n_lesions=fates, diameter_mm=(9, 10))
        _, masks = simulate_visits(np.random.default_rng(1), changed)
        assert masks["after"].sum() / masks["before"].sum() == pytest.approx(factor, rel=0.1)
    write_visit_phantoms(tmp_path, 1, VisitSettings(shape=(24, 24, 24)))
    folders = ["after", "after_images", "before", "before_images", "new"]
    assert sorted(p.parent.name for p in tmp_path.rglob("*.nii.gz")) == folders


WRONG_SETTINGS = {
    "mri": [
        *({"n_lesions": n} for n in ([3], [0, 4], [5, 2])),
        *({"n_cases": n} for n in (0, 1.5)),
        *({"shape": n} for n in ([16, 16], [16, 16, 0])),
        *({"spacing_mm": n} for n in ([1, 1], [1, 1, -1], [1, 1, float("inf")])),
        *({"lesion_free_share": n} for n in (2.0, -0.1, float("nan"))),
        *({"seed": -1}, {"n_test": 3}, {"contrast": "high"}, {"folder": "elsewhere"}),
    ],
    "ct": [{"shape": [32, 32]}],
    "xray": [{"n_nodules": 5}, {"shape": [16, 16, 16]}, {"pixel_mm": 0}, {"n_test": 1}],
}


@pytest.mark.parametrize(
    ("kind", "wrong"), [(kind, wrong) for kind, many in WRONG_SETTINGS.items() for wrong in many]
)
def test_wrong_setting_of_phantoms_is_an_error_that_names_it(kind, wrong, tmp_path):
    settings = {"kind": kind, "n_cases": 2, "seed": 0, **wrong}
    with pytest.raises(ConfigError, match=rf"data\.phantoms.*{next(iter(wrong))}"):
        simulate_once(tmp_path / "set", settings)
    assert not (tmp_path / "set").exists()
