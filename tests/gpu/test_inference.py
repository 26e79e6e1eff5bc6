"""Prediction on a pretend card: it equals the CPU's, and the host waits once per batch at most."""

from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from lesionseg.config import InferenceConfig
from lesionseg.inference.body import Body
from lesionseg.inference.bundle import bundle_plan
from lesionseg.inference.stitch import Store
from lesionseg.inference.window import SlidingWindow
from lesionseg.models.build import build_network
from tests.gpu.plans import card_plan
from tests.gpu.pretend_cuda import pretend_cards
from tests.inference.nnunet.small_models import SmallModel
from tests.noise import noise

MAX_WAITS_A_BATCH = 1  # for the boxes of all views of its tiles
SHAPE = (20, 24, 32)
KINDS = [
    ("unet", "sigmoid"),
    ("unet", "softmax"),
    ("retina_unet", "sigmoid"),
    ("retinanet", "sigmoid"),
]
EVERYWHERE = Body(np.ones((5, 6, 8), bool), (4, 4, 4), tuple(slice(0, n) for n in SHAPE))


def predict(name, activation, device, flips=False):
    """Return the probabilities, and the table of boxes, of a volume of noise in fp32."""
    plan = card_plan(name, activation=activation)
    settings = InferenceConfig.of(precision="fp32", flips=flips)
    window = SlidingWindow([build_network(plan)], plan, settings, device=torch.device(device))
    store, boxes = window(noise(1, *SHAPE), body=EVERYWHERE)
    found = None if boxes is None else torch.cat([boxes.boxes, boxes.scores[:, None]], dim=1)
    return store.decode(store.values), found


@pytest.mark.parametrize(("name", "activation"), KINDS)
def test_prediction_on_a_card_equals_that_of_the_cpu(name, activation):
    probabilities, boxes = predict(name, activation, "cpu")
    with pretend_cards():
        on_card, found = predict(name, activation, "cuda")
    torch.testing.assert_close(on_card, probabilities, rtol=2e-3, atol=1e-4)
    assert (found is None) == (boxes is None)
    if found is not None:
        distances = (found[:, None] - boxes).abs().amax(-1)  # equal scores have any order
        assert len(found) == len(boxes) > 0
        assert max(distances.amin(0).max(), distances.amin(1).max()) < 0.01


def record_waits(name, activation, flips):
    """Return the waits from each batch of tiles to the next, except for finished rows."""
    marks = []
    predict_batch = SlidingWindow.predict

    with pretend_cards() as cards:

        def begin_batch(self, *args):
            marks.append(len(cards.waits))
            return predict_batch(self, *args)

        with mock.patch.object(SlidingWindow, "predict", begin_batch):
            predict(name, activation, "cuda", flips)
    batches = [cards.waits[start:stop] for start, stop in pairwise(marks)]
    return [[wait for wait in batch if "stitch.py" not in wait.place] for batch in batches]


@pytest.mark.parametrize(("name", "activation"), KINDS)
def test_host_waits_at_most_once_per_batch_of_tiles(name, activation):
    batches = record_waits(name, activation, flips=name == "retinanet")
    assert len(batches) >= 2
    for waits in batches[1:]:  # the first one makes constants
        assert len(waits) <= MAX_WAITS_A_BATCH, waits


@pytest.mark.parametrize(
    ("is_nnunet", "bf16", "precision", "dtype"),
    [
        (False, True, "auto", torch.bfloat16),
        (False, False, "auto", torch.float16),
        (True, True, "auto", torch.float16),
        (True, True, "bf16", torch.bfloat16),
        (True, True, "fp32", torch.float32),
    ],
)
def test_precision_on_a_card_follows_model_card_and_settings(
    tmp_path, is_nnunet, bf16, precision, dtype
):
    plan = bundle_plan(SmallModel().write(tmp_path)) if is_nnunet else card_plan("unet")
    settings = InferenceConfig.of(precision=precision)
    with pretend_cards(bf16=bf16):
        window = SlidingWindow([nn.Identity()], plan, settings, device=torch.device("cuda"))
    assert window.dtype == dtype


def test_window_uses_the_current_card():
    plan = card_plan("unet")
    with pretend_cards(n_cards=2) as cards:
        torch.cuda.set_device(1)
        window = SlidingWindow([build_network(plan)], plan, device=torch.device("cuda"))
        window(torch.randn(1, *SHAPE))
        assert set(cards.ops_by_card) == {1}


@pytest.mark.parametrize(("cached", "device"), [(60 * 10**9, "cuda"), (0, "cpu")])
def test_memory_in_the_cache_of_torch_counts_as_free(cached, device):
    plan = card_plan("unet")
    with pretend_cards(free=10**4, cached=cached):
        window = SlidingWindow([build_network(plan)], plan, device=torch.device("cuda"))
        stitcher = mock.patch("lesionseg.inference.window.Stitcher", side_effect=StopIteration)
        with stitcher as made, pytest.raises(StopIteration):
            window(torch.randn(1, *SHAPE))
        assert made.call_args.kwargs["device"].type == device


@pytest.mark.parametrize(("n_tiles", "expected"), [(3, {4}), (5, {4, 1}), (6, {4, 2})])
def test_last_batch_on_a_card_is_filled_to_a_power_of_two(n_tiles, expected):
    plan = card_plan("unet").with_(batch_size=4)
    sizes = set()
    with pretend_cards():
        network = build_network(plan)
        network.register_forward_pre_hook(lambda _, args: sizes.add(len(args[0])))
        window = SlidingWindow(
            [network],
            plan,
            InferenceConfig.of(overlap=0.0, flips=False),
            device=torch.device("cuda"),
        )
        window(torch.randn(1, 16, 16, 16 * n_tiles))
    assert sizes == expected


def test_cudnn_chooses_algorithms_only_while_a_network_runs(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    plan = card_plan("unet")
    seen = []
    network = build_network(plan)
    network.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    with pretend_cards():
        SlidingWindow([network], plan, device=torch.device("cuda"))(torch.randn(1, *SHAPE))
    assert set(seen) == {True}
    assert not torch.backends.cudnn.benchmark


def test_probabilities_outside_the_body_are_zero():
    store = Store((1, 2, 2))
    inside = torch.eye(2, dtype=torch.bool)
    store.write((slice(0, 2), slice(0, 2)), torch.full((1, 2, 2), 0.75), inside)
    assert torch.equal(store.decode(store.values)[0], 0.75 * inside)
