"""A sliding window over a whole image, and the probabilities of a network's logits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lesionseg.config import InferenceConfig
from lesionseg.core import Labels
from lesionseg.errors import GeometryError
from lesionseg.inference.probabilities import compress_log_odds, label_probabilities
from lesionseg.inference.window import SlidingWindow, mirrored_views
from lesionseg.models.build import build_network
from tests.inference.networks import Bright, Identity
from tests.noise import noise

HALF = {"atol": 3e-4, "rtol": 0.0}  # probabilities are stored as float16


def slide(network, image, plan, window=None, **options):
    """Predict the probabilities `[K, *spatial]` of a whole image, in float32 by default."""
    settings = InferenceConfig.of(**{"precision": "fp32", **options})
    store, _ = (window or SlidingWindow((network,), plan, settings))(image)
    return store.decode(store.values)


@pytest.mark.parametrize("shape", [(40, 24, 17), (10, 20, 16), (5, 7, 9), (40, 12)])
def test_identity_network_gives_the_sigmoid_of_the_image(plan, shape):
    image = noise(1, *shape)
    dims = len(shape)
    found = slide(Identity(), image, replace(plan, dims=dims, tile_shape=(16,) * dims))
    torch.testing.assert_close(found, image.sigmoid(), **HALF)


def test_network_with_a_weight_of_another_rank_predicts_channels_last(plan):
    image = noise(1, 20, 20, 16)
    network = Bright()
    network.level = nn.Parameter(torch.full((1, 1, 1, 1), 2.0))
    settings = InferenceConfig.of(precision="fp32")
    window = SlidingWindow((network,), plan, settings, memory_format=torch.channels_last_3d)
    found = slide(network, image, plan, window)
    torch.testing.assert_close(found, slide(network, image, plan), **HALF)


class SmallMemory(nn.Module):
    """A network for which more than two tiles are too many. It notes the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.n_tiles = []

    def forward(self, image):
        if len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.n_tiles.append(len(image))
        return [image]


def test_batch_that_does_not_fit_into_memory_is_halved(plan, caplog):
    image = noise(1, 40, 24, 17)
    network = SmallMemory()
    window = SlidingWindow((network,), plan, InferenceConfig.of(precision="fp32"))
    window.batch_size = 8
    torch.testing.assert_close(slide(network, image, plan, window), image.sigmoid(), **HALF)
    assert window.batch_size == 2
    assert set(network.n_tiles) == {2}
    assert "continued with 2" in caplog.text


class RightNeighbour(nn.Module):
    """A network whose logit is the value of the right neighbour, so that mirroring matters."""

    def forward(self, image):
        return [image.roll(-1, dims=-1)]


def test_flips_average_the_probabilities_of_all_mirrored_images(plan):
    image = noise(1, 16, 16, 16)
    found = slide(RightNeighbour(), image, plan, flips=True)
    expected = (image.roll(-1, -1).sigmoid() + image.roll(1, -1).sigmoid()) / 2
    torch.testing.assert_close(found, expected, **HALF)


def test_mirrored_images_of_volumes_radiographs_and_colour_pictures(plan):
    assert len(mirrored_views(plan.allowed_flips)) == 8
    for changed, views in (
        (replace(plan, dims=2, modality="xray"), ((),)),
        (replace(plan, dims=2, modality="colour"), ((), (0,), (1,), (0, 1))),
        # only axes along which tiles were flipped in training
        (plan.with_(flip_axes=(2,)), ((), (2,))),
        (plan.with_(flip_axes=()), ((),)),
    ):
        assert mirrored_views(changed.allowed_flips) == views


def test_low_precision_changes_probabilities_little(plan):
    image = noise(1, 20, 20, 20)
    network = build_network(plan.with_(lesion_fraction=0.5))
    exact = slide(network, image, plan, precision="fp32")
    fast = slide(network, image, plan, precision="bf16")
    assert fast.dtype == torch.float32
    assert 0 < float((exact - fast).abs().max()) < 0.02


def test_network_that_does_not_fit_the_plan_is_an_error(plan):
    two = replace(plan, labels=Labels((1, 2), ("a", "b")))
    with pytest.raises(GeometryError):
        slide(Identity(), torch.zeros(1, 16, 16, 16), two)


# --- probabilities of extreme logits -------------------------------------------------------------

EXTREME = torch.tensor([7.0, 8.0, 12.0, 17.0, 20.0, 40.0, 80.0])


def test_extreme_logits_keep_their_order_and_moderate_logits_are_not_changed(plan):
    for sign in (1, -1):
        assert (sign * compress_log_odds(sign * EXTREME).sigmoid().diff() > 0).all()
    assert EXTREME.sigmoid()[-1] == EXTREME.sigmoid()[-3] == 1  # without compression these tie
    moderate = torch.linspace(-8, 8, 33)
    assert torch.equal(compress_log_odds(moderate), moderate)
    found = label_probabilities(EXTREME[None, None], plan)
    assert torch.equal(found[0, 0], compress_log_odds(EXTREME).sigmoid())


def test_softmax_probabilities_equal_those_of_torch_and_keep_their_order(plan):
    softmax = replace(plan, activation="softmax")
    for n in (2, 3, 4):
        logits = noise(2, n, 3, 4, 5)
        found = label_probabilities(logits, softmax)
        assert torch.allclose(found, logits.softmax(1)[:, 1:], atol=1e-6)
    logits = torch.stack([-EXTREME, EXTREME, torch.zeros_like(EXTREME)])[None]
    assert (label_probabilities(logits, softmax)[0, 0].diff() > 0).all()
