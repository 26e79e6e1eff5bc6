"""A sliding window over a whole image, and the probabilities of a network's logits."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lesionseg.config import InferenceConfig
from lesionseg.core import Labels
from lesionseg.errors import GeometryError
from lesionseg.inference.probabilities import compress_log_odds, label_probabilities
from lesionseg.inference.window import SlidingWindow, flip_axes
from lesionseg.models.build import build_network
from tests.inference.networks import Identity

HALF = {"atol": 3e-4, "rtol": 0.0}  # probabilities are stored as float16


def slide(network, image, plan, **options):
    """Probabilities `[K, *spatial]` of a whole image."""
    settings = InferenceConfig.of(**{"precision": "fp32", **options})
    store, _ = SlidingWindow((network,), plan, settings)(image)
    return store.decode(store.values)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(40, 24, 17), (10, 20, 16), (5, 7, 9), (40, 12)])
def test_an_identity_network_gives_the_sigmoid_of_the_image(plan, shape):
    image, dims = noise(1, *shape), len(shape)
    found = slide(Identity(), image, replace(plan, dims=dims, tile_shape=(16,) * dims))
    torch.testing.assert_close(found, image.sigmoid(), **HALF)


class _LooksRight(nn.Module):
    """Logit: the right neighbour's value, so that mirroring matters."""

    def forward(self, image):
        return [image.roll(-1, dims=-1)]


def test_flips_average_probabilities_over_all_mirrored_images_but_of_xrays(plan):
    image = noise(1, 16, 16, 16)
    found = slide(_LooksRight(), image, plan, flips=True)
    expected = (image.roll(-1, -1).sigmoid() + image.roll(1, -1).sigmoid()) / 2
    torch.testing.assert_close(found, expected, **HALF)
    assert (len(flip_axes(plan)), flip_axes(plan)[0]) == (8, ())
    assert flip_axes(replace(plan, dims=2, modality="xray")) == ((),)


def test_low_precision_changes_probabilities_little(plan):
    image, network = noise(1, 20, 20, 20), build_network(plan.with_(lesion_fraction=0.5))
    exact, fast = (slide(network, image, plan, precision=p) for p in ("fp32", "bf16"))
    assert fast.dtype == torch.float32
    assert 0 < float((exact - fast).abs().max()) < 0.02


def test_an_image_and_a_network_that_do_not_fit_the_plan_are_an_error(plan):
    two = replace(plan, labels=Labels((1, 2), ("a", "b")))
    for shape, own in (((2, 20, 20, 20), plan), ((1, 20, 20), plan), ((1, 16, 16, 16), two)):
        with pytest.raises(GeometryError):
            slide(Identity(), torch.zeros(shape), own)


# --- probabilities: in order however sure the network is -----------------------------------------

SURER = torch.tensor([7.0, 8.0, 12.0, 17.0, 20.0, 40.0, 80.0])


def test_the_surer_voxel_has_the_higher_probability_and_doubt_stays_as_it_is(plan):
    for sign in (1, -1):
        assert (sign * compress_log_odds(sign * SURER).sigmoid().diff() > 0).all()
    assert torch.sigmoid(SURER)[-1] == torch.sigmoid(SURER)[-3] == 1  # as they are, these tie
    doubtful = torch.linspace(-8, 8, 33)
    assert torch.equal(compress_log_odds(doubtful), doubtful)
    found = label_probabilities(SURER[None, None], plan)
    assert torch.equal(found[0, 0], compress_log_odds(SURER).sigmoid())


def test_softmax_gives_its_own_probabilities_and_sure_channels_keep_their_order(plan):
    softmax = replace(plan, activation="softmax")
    for n in (2, 3, 4):
        logits = noise(2, n, 3, 4, 5)
        found = label_probabilities(logits, softmax)
        assert torch.allclose(found, logits.softmax(1)[:, 1:], atol=1e-6)
    logits = torch.stack([-SURER, SURER, torch.zeros_like(SURER)])[None]
    found = label_probabilities(logits, softmax)[0, 0]
    assert (found.diff() > 0).all()
