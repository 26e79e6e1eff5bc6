"""Losses and their gradients on fixed logits."""

import numpy as np
import torch

from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from tests.golden.common import check, gist

SHAPES = {"2d": (9, 8), "3d": (5, 6, 7)}


def detection_loss(logits, deltas, anchors, labels, valid, boxes, **settings):
    """The terms `anchors` and `boxes` of the detector's loss."""
    from lesionseg.losses import AnchorTargets, DetectionLoss

    return DetectionLoss(**settings)(logits, deltas, anchors, AnchorTargets(labels, valid, boxes))


def inputs(shape, classes, seed=0, batch=2):
    """Logits, a label map with lesions of 0 to `classes`, valid, and the lesions' ids."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(-1, 3, (batch, classes, *shape)).astype(np.float32))
    instances = np.zeros((batch, *shape), np.int64)
    for i, (b, corner) in enumerate(((0, 1), (0, 4), (batch - 1, 2)), 1):
        instances[(b, *(slice(corner, corner + 2 + i % 2) for _ in shape))] = i
    labels = np.where(instances > 0, 1 + instances % max(classes, 1), 0)
    valid = rng.random((batch, *shape)) > 0.2
    return logits, torch.from_numpy(labels), torch.from_numpy(valid), torch.from_numpy(instances)


def evaluated(loss, logits):
    """Value (or values) and gradient of the loss's sum, or of the sum of its terms."""
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    terms = {k: v.item() for k, v in value.items()} if isinstance(value, dict) else gist(value)
    total = sum(value.values()) if isinstance(value, dict) else value.sum()
    total.backward()
    return {"value": terms, "gradient": gist(logits.grad)}


def focal_values(dtype):
    found = {}
    for name, shape in SHAPES.items():
        logits, labels, valid, _ = inputs(shape, 2)
        many, bits = torch.cat([logits.mean(1, keepdim=True), logits], 1), labels.clamp(max=1)
        logits, many = logits.to(dtype), many.to(dtype)
        for reduction in ("none", "mean", "sum", "per_positive"):
            for key, mask in (("", None), (" valid", valid)):
                settings = {"reduction": reduction, "valid": mask}
                found[f"sigmoid {name} {reduction}{key}"] = evaluated(
                    lambda x, y=labels, s=settings: sigmoid_focal_loss(x, y, **s), logits
                )
                found[f"softmax {name} {reduction}{key}"] = evaluated(
                    lambda x, y=labels, s=settings: softmax_focal_loss(x, y, **s), many
                )
        one_hot = torch.stack([labels == 1, labels == 2], 1)
        more = {
            "one class": (sigmoid_focal_loss, logits[:, :1], bits, {}),
            "overlapping classes": (sigmoid_focal_loss, logits, one_hot.float(), {}),
            "alpha per class": (sigmoid_focal_loss, logits, labels, {"alpha": (0.25, 0.8)}),
            "alpha per class, softmax": (
                softmax_focal_loss,
                many,
                labels,
                {"alpha": (0.1, 0.5, 0.9)},
            ),
            "no alpha": (sigmoid_focal_loss, logits, labels, {"alpha": None, "gamma": 0.0}),
            "no alpha, softmax": (softmax_focal_loss, many, labels, {"alpha": None, "gamma": 0.5}),
            "gamma 3.5": (sigmoid_focal_loss, logits, labels, {"gamma": 3.5}),
            "normaliser": (sigmoid_focal_loss, logits, labels, {"normaliser": 7.5}),
            "no lesion": (sigmoid_focal_loss, logits, labels * 0, {}),
            "large logits": (sigmoid_focal_loss, logits * 1e3, labels, {}),
        }
        for key, (loss, x, y, settings) in more.items():
            found[f"{name} {key}"] = evaluated(lambda x, f=loss, y=y, s=settings: f(x, y, **s), x)
    return found


def test_focal_loss():
    check("losses_focal", focal_values(torch.float32), atol=1e-7)


def test_focal_loss_of_bf16():
    check("losses_focal_bf16", focal_values(torch.bfloat16), rtol=1e-2, atol=1e-3)


def test_losses_of_voxel_networks():
    found = {}
    for name, shape in SHAPES.items():
        logits, labels, valid, _ = inputs(shape, 1, seed=1)
        bits = labels.clamp(max=1)
        both = torch.cat([-logits / 2, logits], 1)
        losses = {
            "dice focal": DiceFocalLoss(),
            "dice focal weighted": DiceFocalLoss(0.5, 1.0, focal_weight=3.0, dice_weight=0.5),
            "dice cross-entropy": DiceCrossEntropyLoss(),
            "cross-entropy": CrossEntropyLoss(),
            "softmax dice focal": DiceFocalLoss(activation="softmax"),
            "softmax dice cross-entropy": DiceCrossEntropyLoss(activation="softmax"),
        }
        for key, loss in losses.items():
            x = both if "softmax" in key else logits
            for what, more in (("", {}), (" valid", {"valid": valid, "normaliser": 20.0})):
                found[f"{name} {key}{what}"] = evaluated(
                    lambda x, f=loss, s=more, y=bits: f(x, y, **s), x
                )
    check("losses_voxel", found, atol=1e-7)


def test_detection_loss():
    found = {}
    for dims in (2, 3):
        rng = np.random.default_rng(dims)
        start = torch.from_numpy(rng.uniform(0, 40, (60, dims)).astype(np.float32))
        sides = torch.from_numpy(rng.uniform(2, 20, (60, dims)).astype(np.float32))
        anchors = torch.cat([start, start + sides], 1)
        labels = torch.from_numpy((rng.random((2, 60)) < 0.1) * rng.integers(1, 3, (2, 60)))
        valid = torch.from_numpy(rng.random((2, 60)) > 0.1) | (labels > 0)
        positive = anchors[(labels > 0).nonzero()[:, 1]]
        boxes = positive + torch.from_numpy(rng.normal(0, 1, positive.shape).astype(np.float32))
        logits = torch.from_numpy(rng.normal(-2, 2, (2, 60, 2)).astype(np.float32))
        deltas = torch.from_numpy(rng.normal(0, 0.3, (2, 60, 2 * dims)).astype(np.float32))
        every = torch.cat([logits, deltas], 2)
        for name, settings in {
            "focal": {},
            "focal alpha gamma": {"alpha": 0.4, "gamma": 1.0},
            "hard negatives": {"hard_negatives": True},
        }.items():
            for key, mine in (("", labels), (" no lesion", labels * 0)):
                there = boxes if not key else boxes[:0]
                found[f"{dims}d {name}{key}"] = evaluated(
                    lambda x, a=anchors, y=mine, v=valid, t=there, s=settings: detection_loss(
                        x[..., :2], x[..., 2:], a, y, v, t, **s
                    ),
                    every,
                )
    check("losses_detection", found, atol=1e-7)
