from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lesionseg.config import InferenceConfig
from lesionseg.errors import GeometryError
from lesionseg.inference.window import SlidingWindow, flip_axes
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Plan
from tests.inference.networks import Identity

HALF = {"atol": 3e-4, "rtol": 0.0}  # probabilities are stored as float16


def slide(network: nn.Module, image: Tensor, plan: Plan, **options: Any) -> Tensor:
    """Probabilities `[K, *spatial]` of a whole image."""
    settings = InferenceConfig.of(**{"precision": "fp32", **options})
    store, _ = SlidingWindow((network,), plan, settings)(image)
    return store.decode(store.values)


def _image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(40, 24, 17), (10, 20, 16), (5, 7, 9)])
def test_an_identity_network_gives_the_sigmoid_of_the_image(
    plan: Plan, shape: tuple[int, ...]
) -> None:
    image = _image(1, *shape)
    found = slide(Identity(), image, plan)
    torch.testing.assert_close(found, image.sigmoid(), **HALF)


def test_two_axes_work_alike(plan: Plan) -> None:
    flat = replace(plan, dims=2, tile_shape=(16, 16))
    image = _image(1, 40, 12)
    found = slide(Identity(), image, flat)
    torch.testing.assert_close(found, image.sigmoid(), **HALF)


def test_softmax_drops_the_background(plan: Plan) -> None:
    two = replace(plan, activation="softmax", channel_names=("a", "b", "c"), label_values=(1, 2))
    image = _image(3, 20, 20, 20)
    found = slide(Identity(), image, two)
    torch.testing.assert_close(found, image.softmax(0)[1:], **HALF)


def test_tiles_go_in_batches_and_are_counted(plan: Plan) -> None:
    network, calls = Identity(), []
    window = SlidingWindow((network,), plan, batch_size=3)
    window(_image(1, 16, 16, 40), on_batch=lambda done, total: calls.append((done, total)))
    assert [shape[0] for shape in network.seen] == [3, 1]
    assert calls == [(3, 4), (4, 4)]


class _LooksRight(nn.Module):
    """Logit: the right neighbour's value, so that mirroring matters."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image.roll(-1, dims=-1)]


def test_flips_average_probabilities_over_all_mirrored_images(plan: Plan) -> None:
    image = _image(1, 16, 16, 16)
    found = slide(_LooksRight(), image, plan, flips=True)
    expected = (image.roll(-1, -1).sigmoid() + image.roll(1, -1).sigmoid()) / 2
    torch.testing.assert_close(found, expected, **HALF)


def test_every_set_of_axes_is_mirrored_but_an_xray_never(plan: Plan) -> None:
    assert len(flip_axes(plan)) == 8
    assert flip_axes(plan)[0] == ()
    assert flip_axes(replace(plan, dims=2, modality="xray")) == ((),)


def test_low_precision_changes_probabilities_little(plan: Plan) -> None:
    image, network = _image(1, 20, 20, 20), build_network(plan.with_(lesion_fraction=0.5))
    exact, fast = (slide(network, image, plan, precision=p) for p in ("fp32", "bf16"))
    assert fast.dtype == torch.float32
    assert 0 < float((exact - fast).abs().max()) < 0.02


def test_refuses_an_image_and_a_network_that_do_not_fit_the_plan(plan: Plan) -> None:
    for shape in ((2, 20, 20, 20), (1, 20, 20)):
        with pytest.raises(GeometryError):
            slide(Identity(), torch.zeros(shape), plan)
    two = replace(plan, label_values=(1, 2), label_names=("a", "b"))
    with pytest.raises(GeometryError):
        slide(Identity(), torch.zeros(1, 16, 16, 16), two)
