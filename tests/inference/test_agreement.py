"""The disagreement of an ensemble on a scan."""

from dataclasses import replace

import pytest
import torch

from lesionseg.config import InferenceConfig
from lesionseg.core import Geometry, Volume
from lesionseg.inference.agreement import EnsembleAgreement
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.window import SlidingWindow
from tests.inference.networks import Bright, Identity
from tests.inference.nnunet.small_models import SmallModel
from tests.noise import noise


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([([1, 1, 0, 0], [1, 1, 0, 0])], 0),  # equal masks
        ([([1, 1, 0, 0], [0, 0, 1, 1])], 1),  # no common voxel
        ([([1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1])], 1 - 1 / 4),
        ([([1, 0], [1, 0]), ([1, 1], [1, 0])], 1 - 2 / 3),  # two batches of tiles
        ([([0, 0], [0, 0])], 0),  # nothing is marked
        ([], None),  # nothing was predicted
    ],
)
def test_disagreement_is_one_minus_intersection_over_union(marks, expected):
    agreement = EnsembleAgreement()
    for of_networks in marks:
        agreement.add([torch.tensor(one, dtype=torch.bool) for one in of_networks])
    assert agreement.disagreement() == pytest.approx(expected)


def test_window_counts_the_mean_of_each_networks_views(plan):
    """These networks are equal in all views."""
    flat = replace(plan, tile_shape=(16, 16, 16))
    image = noise(1, 16, 16, 32) * 2
    networks = (Identity(), Bright(level=0.5, gain=1.0))
    settings = InferenceConfig.of(precision="fp32", overlap=0.0, flips=True)
    agreement = EnsembleAgreement()
    SlidingWindow(networks, flat, settings)(image, agreement=agreement)
    one, other = (logit.sigmoid() >= flat.candidate_rule.extent for logit in (image, image - 0.5))
    n_all, n_any = (one & other).sum().item(), (one | other).sum().item()
    assert agreement.disagreement() == pytest.approx(1 - n_all / n_any)
    assert 0 < n_all < n_any


def predict(plan, networks, **settings):
    array = noise(1, 16, 16, 16, seed=1).numpy() * 3
    volume = Volume(array, Geometry.from_spacing(array.shape[1:], plan.spacing_mm))
    predictor = Predictor(Bundle(networks, plan), settings=InferenceConfig.of(**settings))
    return predictor.predict_volume(volume, "case").disagreement


def test_only_ensembles_have_a_disagreement(plan):
    assert predict(plan, (Identity(),)) is None
    assert predict(plan, (Identity(), Identity())) == 0
    assert predict(plan, (Identity(), Bright(level=9.0))) == 1  # the second one marks nothing


def test_folds_of_an_nnunet_model_have_a_disagreement(tmp_path):
    folder = SmallModel(n_folds=2).write(tmp_path)
    array = noise(1, 12, 20, 24, seed=1).numpy()
    volume = Volume(array, Geometry.from_spacing(array.shape[1:], (2.0, 1.0, 1.0)))
    both, one = (
        Predictor(path, device="cpu").predict_volume(volume, "case").disagreement
        for path in (folder, folder / "fold_0")
    )
    assert 0 < both <= 1
    assert one is None
