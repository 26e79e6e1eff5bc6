"""Write a checkpoint of nnssl's ResEnc-L with random weights, and what the network computes.

    .peers/bin/python benchmarks/peers/resenc_l.py FOLDER

Run this in the peers' environment. FOLDER/checkpoint_final.pth has the names of
`ResidualEncoderUNet` and the sizes of nnssl's `architecture_registry.py`. FOLDER/outputs.pt
contains an image, the encoder's maps and the logits, in double precision.
"""

import sys
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

folder = Path(sys.argv[1])
torch.manual_seed(0)
network = ResidualEncoderUNet(
    input_channels=1,
    n_stages=6,
    features_per_stage=[32, 64, 128, 256, 320, 320],
    conv_op=nn.Conv3d,
    kernel_sizes=[[3, 3, 3]] * 6,
    strides=[[1, 1, 1]] + [[2, 2, 2]] * 5,
    n_blocks_per_stage=[1, 3, 4, 6, 6, 6],
    num_classes=1,
    n_conv_per_stage_decoder=[1] * 5,
    conv_bias=True,
    norm_op=nn.InstanceNorm3d,
    norm_op_kwargs={"eps": 1e-5, "affine": True},
    nonlin=nn.LeakyReLU,
    nonlin_kwargs={"inplace": True},
    deep_supervision=False,
)
with torch.no_grad():
    for parameter in network.parameters():  # no scale of exactly 1, no shift of exactly 0
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
    plan = {"architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None}}
    content = {"network_weights": network.state_dict(), "nnssl_adaptation_plan": plan}
    torch.save(content, folder / "checkpoint_final.pth")
    network.double().eval()
    image = torch.randn(1, 1, 64, 64, 32, dtype=torch.float64)
    outputs = {"image": image, "maps": network.encoder(image), "logits": network(image)}
    torch.save(outputs, folder / "outputs.pt")
