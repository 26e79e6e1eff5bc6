"""Our weights with the names of nnU-Net."""

import re
from collections import OrderedDict

import torch


def to_nnunet_weights(ours):
    """Return our weights as nnU-Net stores them: layers twice, the encoder also in the decoder."""
    is_residual = "encoder.stem.conv.weight" in ours
    last = len({m[1] for name in ours if (m := re.match(r"decoder\.ups\.(\d+)", name))}) - 1
    theirs = OrderedDict()
    for name, tensor in ours.items():
        new = _nnunet_name(name, is_residual, last)
        theirs[new] = tensor
        if ".conv.weight" in new and "seg" not in new:
            theirs[new.replace(".conv.weight", ".conv.bias")] = torch.ones(len(tensor))
            theirs[new.replace(".conv.weight", ".all_modules.0.weight")] = tensor
        if ".norm." in new:
            theirs[new.replace(".norm.", ".all_modules.1.")] = tensor
    again = {f"decoder.{name}": t for name, t in theirs.items() if name.startswith("encoder.")}
    return OrderedDict({**theirs, **again})


PARTS = (  # nnU-Net counts these stages from the other end
    (r"decoder\.ups\.(\d)\.", "decoder.transpconvs.{}."),
    (r"decoder\.stages\.(\d)\.", "decoder.stages.{}.convs."),
    (r"heads\.(\d)\.conv\.", "decoder.seg_layers.{}."),
)


def _nnunet_name(name, is_residual, last):
    for ours, theirs in PARTS:
        if match := re.match(ours, name):
            return theirs.format(last - int(match[1])) + name[match.end() :]
    if name.startswith("encoder.stem."):
        return name.replace("stem.", "stem.convs.0.")
    _, _, stage, block, part = name.split(".", 4)
    if not is_residual:
        return f"encoder.stages.{stage}.0.convs.{block}.{part}"
    part = f"conv2.{part}" if part.startswith("norm.") else part
    part = part.replace("first.", "conv1.").replace("second.", "conv2.conv.")
    # the skip connection of a later stage is an average, a convolution and a norm
    part = part.replace("past.1.", "skip.1.conv.").replace("past.2.", "skip.1.norm.")
    return f"encoder.stages.{stage}.blocks.{block}.{part}"
