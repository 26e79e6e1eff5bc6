"""Focal losses and their gradients on fixed logits."""

import numpy as np
import torch

from lesionseg.losses import sigmoid_focal_loss, softmax_focal_loss
from tests.golden.common import check, gist

SHAPES = {"2d": (9, 8), "3d": (5, 6, 7)}


def to_tensor(array):
    return torch.from_numpy(array.astype(np.float32))


def make_inputs(shape, classes, seed=0, batch=2):
    """Make logits, a label map with labels of 0 to `classes`, and a mask of valid voxels."""
    rng = np.random.default_rng(seed)
    logits = to_tensor(rng.normal(-1, 3, (batch, classes, *shape)))
    instances = np.zeros((batch, *shape), np.int64)
    for i, (b, corner) in enumerate(((0, 1), (0, 4), (batch - 1, 2)), 1):
        instances[(b, *(slice(corner, corner + 2 + i % 2) for _ in shape))] = i
    labels = np.where(instances > 0, 1 + instances % max(classes, 1), 0)
    valid = rng.random((batch, *shape)) > 0.2
    return logits, torch.from_numpy(labels), torch.from_numpy(valid)


def evaluate(loss, logits, *given, **settings):
    """Return the values of a loss and the gradient of their sum."""
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *given, **settings)
    value.sum().backward()
    return {"value": gist(value), "gradient": gist(logits.grad)}


def focal_values(dtype):
    found = {}
    functions = {"sigmoid": sigmoid_focal_loss, "softmax": softmax_focal_loss}
    for name, shape in SHAPES.items():
        x, labels, valid = make_inputs(shape, 2)
        logits = {"sigmoid": x, "softmax": torch.cat([x.mean(1, keepdim=True), x], 1)}
        logits = {kind: x.to(dtype) for kind, x in logits.items()}
        for kind, function in functions.items():
            for reduction in ("none", "mean", "sum", "per_positive"):
                for key, mask in (("", None), (" valid", valid)):
                    found[f"{kind} {name} {reduction}{key}"] = evaluate(
                        function, logits[kind], labels, reduction=reduction, valid=mask
                    )
        x = logits["sigmoid"]
        bits = labels.clamp(max=1)
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
            found[f"{name} {key}"] = evaluate(sigmoid_focal_loss, *given, **settings)
        for key, settings in (
            ("alpha per class, softmax", {"alpha": (0.1, 0.5, 0.9)}),
            ("no alpha, softmax", {"alpha": None, "gamma": 0.5}),
        ):
            found[f"{name} {key}"] = evaluate(
                softmax_focal_loss, logits["softmax"], labels, **settings
            )
    return found


def test_focal_losses_equal_the_golden_values():
    check("losses_focal", focal_values(torch.float32))  # sums near 0 depend on the processor


def test_focal_losses_of_bf16_equal_the_golden_values():
    check("losses_focal_bf16", focal_values(torch.bfloat16), rtol=1e-2, atol=1e-3)
