"""A checkpoint of a small pretrained ResEnc, as nnssl publishes those of OpenMind."""

import torch

from lesionseg.models import build_network
from lesionseg.plan.plan import Architecture
from tests.models import plans
from tests.models.nnunet_names import to_nnunet_weights

N_STAGES = 3
RESENC = Architecture(
    "residual_unet",
    features=(4, 6, 6),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernels=((3, 3, 3),) * N_STAGES,
    blocks=1,
    n_supervised=1,
    encoder_blocks=(1, 3, 4),
    layout="nnunet",
)
PRESET = {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}


def plan_of(n_channels=1, architecture=RESENC):
    return plans.plan_of(dims=3, n_channels=n_channels, architecture=architecture)


def pretrained_network(plan=None):
    """Return a network in which no tensor has only the values 0 or 1."""
    network = build_network(plan or plan_of(), seed=4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return network


def write_pretrained(path, weights, preset=PRESET):
    """Write weights by nnssl's names, with facts that it adds to a published checkpoint."""
    content = {
        "network_weights": weights,
        "init_args": {"fold": 0, "device": torch.device("cpu")},
        "trainer_name": "BaseMAETrainer",
        "nnssl_adaptation_plan": {"architecture_plans": preset, "key_to_stem": "encoder.stem"},
    }
    torch.save(content, path)
    return path


def nnssl_weights(network, *, with_decoder=True):
    """Return a network's weights by nnssl's names. Contrastive pretraining has no decoder."""
    weights = to_nnunet_weights(network.state_dict())
    if with_decoder:
        return weights
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    return {**encoder, "projector.layer1.0.weight": torch.zeros(2, 2)}
