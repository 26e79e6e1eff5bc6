"""The closed table of networks."""

import pytest
import torch
from torch import nn

from lesionseg.errors import ConfigError
from lesionseg.models import build_network
from lesionseg.models.build import bf16_is_faster, fast_dtype, fast_memory_format
from lesionseg.plan.plan import Architecture, Plan


def plan(name="unet"):
    return Plan(
        dims=2,
        modality="xray",
        channel_names=("grey",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 1.0),
        normalisation=(),
        tile_shape=(16, 16),
        batch_size=1,
        architecture=Architecture(name, (4, 8), ((1, 1), (2, 2)), ((3, 3), (3, 3)), n_supervised=1),
        lesion_fraction=0.01,
    )


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, same, other = (build_network(plan(), seed=s) for s in (1, 1, 2))
    pairs = zip(first.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(
        first.encoder.stages[0][0].conv.weight, other.encoder.stages[0][0].conv.weight
    )


def test_building_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    build_network(plan())
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"no network 'unett'.*did you mean 'unet'"):
        build_network(plan("unett"))


def test_a_users_own_network_is_passed_as_an_object():
    network = build_network(plan("mine"), architectures={"mine": lambda p: nn.Conv2d(1, p.dims, 1)})
    assert isinstance(network, nn.Conv2d)


def test_a_cpu_computes_channels_last():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert fast_memory_format(3, cpu) == torch.channels_last_3d
    assert fast_memory_format(2, cpu) == torch.channels_last
    assert fast_memory_format(3, gpu) == torch.contiguous_format
    assert fast_dtype(cpu) in (torch.float32, torch.bfloat16)
    assert fast_dtype(torch.device("meta")) == torch.float32


@pytest.mark.parametrize(
    ("says", "faster"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16", False),  # measured: slower than fp32
        ("vendor_id : AuthenticAMD\nflags : avx2", False),
        ("", False),
    ],
)
def test_a_processor_computes_in_bf16_where_that_is_faster(says, faster):
    assert bf16_is_faster(says) is faster
