"""Simulated chest radiographs: exact references, physical shadows, files others can read."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Case
from lesionseg.errors import ConfigError
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import label_components
from lesionseg.phantoms.chest_xray import XraySettings, simulate_xray_case, write_xray_phantoms
from lesionseg.phantoms.fields import Tube, polyline, tube_thickness
from lesionseg.phantoms.thorax import PER_MM

SMALL = XraySettings(shape=(160, 160), pixel_mm=2.2)


def simulate(seed: int = 0, settings: XraySettings = SMALL, **options: bool) -> Case:
    return simulate_xray_case("a", np.random.default_rng(seed), settings, **options)


def test_a_tube_across_the_beam_casts_the_shadow_of_its_chord():
    shadow = tube_thickness([polyline([(0, 0, -60), (0, 0, 60)], 8.0)], (101, 101), 1.0)
    offset = np.arange(101) - 50.0
    chord = 2 * np.sqrt(np.maximum(64 - offset**2, 0))
    rim = np.abs(np.abs(offset) - 8) < 1  # pixels at the rim are mixed
    np.testing.assert_allclose(shadow[~rim, 50], chord[~rim], rtol=0.03, atol=1e-3)
    assert shadow[:, 50].sum() == pytest.approx(np.pi * 64, rel=0.02)


def test_a_tube_along_the_beam_casts_its_length():
    shadow = tube_thickness([polyline([(0, -20, 0), (0, 20, 0)], 6.0)], (41, 41), 1.0)
    assert shadow[20, 20] == pytest.approx(40, rel=0.03)


def test_shadows_of_tubes_add_up_and_leave_the_image_quietly():
    one, two = polyline([(0, 0, -9), (0, 0, 9)], 3.0), polyline([(200, 0, 0), (230, 0, 0)], 3.0)
    both = tube_thickness([one, one, two], (41, 41), 1.0)
    np.testing.assert_allclose(both, 2 * tube_thickness([one], (41, 41), 1.0), atol=1e-3)


def test_no_tube_casts_no_shadow():
    assert not tube_thickness([], (16, 16), 1.0).any()
    assert not tube_thickness([Tube(np.zeros((0, 3)), 2.0)], (16, 16), 1.0).any()


def test_attenuation_is_nist_s_at_60_kev_per_mm():
    assert PER_MM["soft"] == pytest.approx(0.02171, abs=1e-5)
    assert PER_MM["bone"] == pytest.approx(0.06044, abs=1e-5)
    assert PER_MM["lung"] < PER_MM["soft"] < PER_MM["bone"]


def test_the_same_seed_gives_the_same_case():
    first, second = simulate(3), simulate(3)
    np.testing.assert_array_equal(first.image.array, second.image.array)
    np.testing.assert_array_equal(first.reference.instances, second.reference.instances)


def test_levels_are_twelve_bits_and_the_lungs_are_dark():
    image = simulate(1).image.array[0]
    assert image.min() >= 0
    assert image.max() == 4095
    lung, abdomen, spine = image[70:90, 35:50], image[-12:, 30:60], image[60:110, 76:84]
    assert lung.mean() < 0.6 * abdomen.mean()
    assert lung.mean() < 0.6 * spine.mean()


def test_each_nodule_is_one_piece_apart_from_the_others_and_inside_a_lung():
    for seed in range(4):
        case = simulate(seed, replace(SMALL, n_nodules=(3, 3)))
        instances = case.reference.instances
        assert label_components(instances > 0).max() == instances.max()
        assert case.reference.instance_labels == (1,) * instances.max()
        np.testing.assert_array_equal(case.reference.labels, instances > 0)


def test_a_nodule_brightens_its_place_and_nothing_else():
    settings = replace(SMALL, photons=1e9, n_nodules=(1, 1), contrast=3.0)
    case, free = simulate(2, settings), simulate(2, settings, lesion_free=True)
    difference = case.image.array[0] - free.image.array[0]
    mask = case.reference.instances > 0
    assert difference[mask].mean() > 5 * abs(np.median(difference[~mask]))


def test_lesion_free_case_has_an_empty_reference():
    assert not simulate(2, lesion_free=True).reference.labels.any()


def test_writes_a_coco_folder(tmp_path):
    told: list[tuple[str, int, int]] = []
    told_to = {"progress": lambda *done: told.append(done)}
    write_xray_phantoms(tmp_path, 4, seed=1, shape=(160, 160), pixel_mm=2.2, **told_to)
    assert [done for _, done, _ in told] == [1, 2, 3, 4]
    document = json.loads((tmp_path / "annotations.json").read_text())
    assert "SIMULATED" in document["info"]["description"]
    assert [i["id"] for i in document["images"]] == [1, 2, 3, 4]
    assert {a["image_id"] for a in document["annotations"]} == {1, 2, 3}  # the last is lesion-free
    assert [a["id"] for a in document["annotations"]] == list(
        range(1, len(document["annotations"]) + 1)
    )
    entry = document["images"][0]
    assert (entry["width"], entry["height"], entry["pixel_mm"]) == (160, 160, 2.2)
    image = read_volume(tmp_path / "images" / entry["file_name"])
    assert image.array.dtype == np.uint16
    mask = read_volume(tmp_path / "masks" / entry["mask_file"]).array[0]
    for annotation in (a for a in document["annotations"] if a["image_id"] == 1):
        rows, columns = np.nonzero(mask == annotation["mask_label"])
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == len(rows)


def test_refuses_impossible_numbers(tmp_path):
    with pytest.raises(ConfigError, match="too small"):
        XraySettings(shape=(32, 32), pixel_mm=1.0)
    with pytest.raises(ConfigError, match="n_nodules"):
        XraySettings(n_nodules=(0, 2))
    with pytest.raises(ConfigError, match="n_cases=0"):
        write_xray_phantoms(tmp_path, 0, seed=0)
