"""Losses and their gradients on fixed logits."""

import numpy as np
import torch

from lesionseg.losses import (
    AnchorTargets,
    CrossEntropyLoss,
    DetectionLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from tests.golden.common import check, gist

SHAPES = {"2d": (9, 8), "3d": (5, 6, 7)}


def single(array):
    return torch.from_numpy(array.astype(np.float32))


def inputs(shape, classes, seed=0, batch=2):
    """Logits, a label map with lesions of 0 to `classes`, and valid."""
    rng = np.random.default_rng(seed)
    logits = single(rng.normal(-1, 3, (batch, classes, *shape)))
    instances = np.zeros((batch, *shape), np.int64)
    for i, (b, corner) in enumerate(((0, 1), (0, 4), (batch - 1, 2)), 1):
        instances[(b, *(slice(corner, corner + 2 + i % 2) for _ in shape))] = i
    labels = np.where(instances > 0, 1 + instances % max(classes, 1), 0)
    valid = rng.random((batch, *shape)) > 0.2
    return logits, torch.from_numpy(labels), torch.from_numpy(valid)


def evaluated(loss, logits, *given, **settings):
    """Value (or values) and gradient of the loss's sum, or of the sum of its terms."""
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *given, **settings)
    terms = {k: v.item() for k, v in value.items()} if isinstance(value, dict) else gist(value)
    total = sum(value.values()) if isinstance(value, dict) else value.sum()
    total.backward()
    return {"value": terms, "gradient": gist(logits.grad)}


def focal_values(dtype):
    found, functions = {}, {"sigmoid": sigmoid_focal_loss, "softmax": softmax_focal_loss}
    for name, shape in SHAPES.items():
        x, labels, valid = inputs(shape, 2)
        logits = {"sigmoid": x, "softmax": torch.cat([x.mean(1, keepdim=True), x], 1)}
        logits = {kind: x.to(dtype) for kind, x in logits.items()}
        for kind, function in functions.items():
            for reduction in ("none", "mean", "sum", "per_positive"):
                for key, mask in (("", None), (" valid", valid)):
                    found[f"{kind} {name} {reduction}{key}"] = evaluated(
                        function, logits[kind], labels, reduction=reduction, valid=mask
                    )
        x, bits = logits["sigmoid"], labels.clamp(max=1)
        one_hot = torch.stack([labels == 1, labels == 2], 1)
        for key, given, settings in (
            ("one class", (x[:, :1], bits), {}),
            ("overlapping classes", (x, one_hot.float()), {}),
            ("alpha per class", (x, labels), {"alpha": (0.25, 0.8)}),
            ("no alpha", (x, labels), {"alpha": None, "gamma": 0.0}),
            ("gamma 3.5", (x, labels), {"gamma": 3.5}),
            ("normaliser", (x, labels), {"normaliser": 7.5}),
            ("no lesion", (x, labels * 0), {}),
            ("large logits", (x * 1e3, labels), {}),
        ):
            found[f"{name} {key}"] = evaluated(sigmoid_focal_loss, *given, **settings)
        for key, settings in (
            ("alpha per class, softmax", {"alpha": (0.1, 0.5, 0.9)}),
            ("no alpha, softmax", {"alpha": None, "gamma": 0.5}),
        ):
            of_softmax = softmax_focal_loss, logits["softmax"], labels
            found[f"{name} {key}"] = evaluated(*of_softmax, **settings)
    return found


def test_focal_loss():
    check("losses_focal", focal_values(torch.float32), atol=1e-7)


def test_focal_loss_of_bf16():
    check("losses_focal_bf16", focal_values(torch.bfloat16), rtol=1e-2, atol=1e-3)


def test_losses_of_voxel_networks():
    found = {}
    for name, shape in SHAPES.items():
        logits, labels, valid = inputs(shape, 1, seed=1)
        both = torch.cat([-logits / 2, logits], 1)
        for key, loss in {
            "dice focal": DiceFocalLoss(),
            "dice focal weighted": DiceFocalLoss(0.5, 1.0, focal_weight=3.0, dice_weight=0.5),
            "dice cross-entropy": DiceCrossEntropyLoss(),
            "cross-entropy": CrossEntropyLoss(),
            "softmax dice focal": DiceFocalLoss(activation="softmax"),
            "softmax dice cross-entropy": DiceCrossEntropyLoss(activation="softmax"),
        }.items():
            for what, more in (("", {}), (" valid", {"valid": valid, "normaliser": 20.0})):
                x = both if "softmax" in key else logits
                found[f"{name} {key}{what}"] = evaluated(loss, x, labels.clamp(max=1), **more)
    check("losses_voxel", found, atol=1e-7)


def test_detection_loss():
    found = {}
    for dims in (2, 3):
        rng = np.random.default_rng(dims)
        start, sides = (single(rng.uniform(*ends, (60, dims))) for ends in ((0, 40), (2, 20)))
        anchors = torch.cat([start, start + sides], 1)
        labels = torch.from_numpy((rng.random((2, 60)) < 0.1) * rng.integers(1, 3, (2, 60)))
        valid = torch.from_numpy(rng.random((2, 60)) > 0.1) | (labels > 0)
        positive = anchors[(labels > 0).nonzero()[:, 1]]
        boxes = positive + single(rng.normal(0, 1, positive.shape))
        logits, deltas = (
            single(rng.normal(-2, 2, (2, 60, 2))),
            rng.normal(0, 0.3, (2, 60, 2 * dims)),
        )
        every = torch.cat([logits, single(deltas)], 2)
        for name, loss in {
            "focal": DetectionLoss(),
            "focal alpha gamma": DetectionLoss(alpha=0.4, gamma=1.0),
            "hard negatives": DetectionLoss(hard_negatives=True),
        }.items():
            for key, there, of in (("", labels, boxes), (" no lesion", labels * 0, boxes[:0])):
                targets = AnchorTargets(there, valid, of)
                found[f"{dims}d {name}{key}"] = evaluated(
                    lambda x, loss, *given: loss(x[..., :2], x[..., 2:], *given),
                    *(every, loss, anchors, targets),
                )
    check("losses_detection", found, atol=1e-7)
