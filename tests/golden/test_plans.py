"""Plans of fixed fingerprints on processors and GPUs."""

import random
from dataclasses import astuple
from math import prod
from pathlib import Path

from lesionseg.config import ModelConfig
from lesionseg.core import Dataset, Labels
from lesionseg.plan import Fingerprint, make_plan
from lesionseg.plan.fingerprint import ChannelStatistics, Spread
from tests.golden.common import check

DATASETS = {  # modality, channels, shape, spacing (mm), diameters (mm), cases
    "x-ray": ("xray", 1, (1024, 880), (0.2, 0.2), (4.0, 30.0), 60),
    "thick-slice MRI": ("mri", 1, (24, 320, 320), (5.0, 0.7, 0.7), (4.0, 40.0), 40),
    "isotropic CT": ("ct", 1, (330, 420, 420), (0.9, 0.8, 0.8), (5.0, 30.0), 100),
    "small lesions": ("mri", 1, (180, 220, 190), (1.0, 1.0, 1.0), (2.0, 5.0), 30),
    "two channels": ("mri", 2, (150, 190, 160), (1.0, 1.0, 1.0), (5.0, 60.0), 200),
    "small volumes": ("ct", 1, (40, 48, 36), (2.0, 2.0, 2.0), (8.0, 20.0), 12),
    "large lesions": ("ct", 1, (200, 512, 512), (2.5, 0.7, 0.7), (30.0, 120.0), 50),
    "four channels, 2-D": ("xray", 4, (400, 300), (1.0, 1.0), (5.0, 25.0), 20),
}
DEVICES = {"cpu": ("cpu", 16), "11 GB": ("cuda:0", 11), "80 GB": ("cuda:0", 80)}


def plan_of(name, device, memory_gb, **chosen):
    """Make the plan of a dataset. Only this function knows how a plan is made."""
    facts = facts_of(name)
    names = tuple(f"channel{i}" for i in range(facts.pop("n_channels")))
    modality = facts["modality"]
    body = Spread(90.0, 40.0, -5.0, 240.0)
    lesion = Spread(130.0, 35.0, 10.0, 250.0)
    fingerprint = Fingerprint(
        channels=tuple(ChannelStatistics(n, modality == "ct", body, lesion, 0.7) for n in names),
        **facts,
    )
    labels = Labels.of({1: "lesion"})
    dataset = Dataset(name, Path("toy"), "nnunet", facts["dims"], names, labels, ())
    return make_plan(
        fingerprint,
        dataset,
        memory_gb=memory_gb,
        device=device,
        overrides=ModelConfig.of(**chosen),
        step_memory=step_gb,
    )


def step_gb(plan):
    """Return an invented memory of a training step: a number of floats per voxel and feature."""
    width = plan.architecture.features[0]
    voxels = plan.batch_size * prod(plan.tile_shape)
    return 1.5 + 34e-9 * width * voxels * (1 + 0.02 * len(plan.architecture.features))


def facts_of(name):
    """Return shapes, spacings and lesions that vary from case to case by a fixed rule."""
    modality, n_channels, shape, spacing, (small, large), n = DATASETS[name]
    rng = random.Random(name)
    dims = len(shape)
    shapes = tuple(tuple(round(s * rng.uniform(0.85, 1.15)) for s in shape) for _ in range(n))
    spacings = tuple(tuple(s * rng.choice((0.9, 1.0, 1.0, 1.2)) for s in spacing) for _ in range(n))
    lesions = tuple(rng.choice((0, 1, 2, 5)) for _ in range(n))
    diameters = tuple(small * (large / small) ** rng.random() for _ in range(sum(lesions)))
    volumes = [d**dims * (0.5236 if dims == 3 else 0.7854) for d in diameters]
    scanned = sum(prod(s) * prod(mm) for s, mm in zip(shapes, spacings, strict=True))
    return {
        "dims": dims,
        "modality": modality,
        "n_channels": n_channels,
        "shapes": shapes,
        "spacings_mm": spacings,
        "lesions_per_case": lesions,
        "diameters_mm": diameters,
        "lesion_voxels": tuple(max(1, round(v / prod(spacing))) for v in volumes),
        "lesion_fraction": sum(volumes) / scanned,
        "extents_mm": tuple(tuple(d * rng.uniform(0.8, 1.3) for _ in shape) for d in diameters),
    }


def decisions_of(plan):
    shape = plan.architecture
    rule = plan.candidate_rule
    keys = ("spacing_mm", "tile_shape", "batch_size", "lesion_fraction")
    found = {key: getattr(plan, key) for key in keys}
    found |= {key: getattr(shape, key) for key in ("features", "strides", "kernels")}
    found["normalisation"] = [[*astuple(scale)] for scale in plan.normalisation]
    found["floor"] = rule.floor
    if plan.anchors is not None:
        found["anchors"] = {"stages": plan.anchors.stages, "sizes": plan.anchors.sizes}
    return found


def plan_on_every_device(names, **chosen):
    found = {}
    for name in names:
        for title, (device, memory_gb) in DEVICES.items():
            found[f"{name}, {title}"] = decisions_of(plan_of(name, device, memory_gb, **chosen))
    return found


def test_plans_of_segmentation_networks_equal_the_golden_values():
    check("plans", plan_on_every_device(DATASETS))


def test_plans_of_detectors_equal_the_golden_values():
    names = ("x-ray", "thick-slice MRI", "isotropic CT", "small lesions")
    check("plans_detectors", plan_on_every_device(names, architecture="retina_unet"))


def test_plans_with_overrides_equal_the_golden_values():
    overrides = {
        "spacing_mm": (2.0, 1.5, 1.5),
        "tile_shape": (48, 64, 64),
        "base_features": 8,
        "batch_size": 3,
    }
    found = {}
    for key, value in overrides.items():
        found[key] = decisions_of(plan_of("isotropic CT", "cpu", 16, **{key: value}))
    check("plans_choices", found)
