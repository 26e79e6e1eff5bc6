"""The closed table of networks."""

import pytest
import torch
from torch import nn

from lesionseg.errors import ConfigError
from lesionseg.models import build_network
from lesionseg.models.build import bf16_is_faster, fast_dtype, fast_memory_format
from tests.models.plans import plan_of


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, same, other = (build_network(plan_of(), seed=s) for s in (1, 1, 2))
    pairs = zip(first.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(
        first.encoder.stages[0][0].conv.weight, other.encoder.stages[0][0].conv.weight
    )


def test_building_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    build_network(plan_of())
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError):
        build_network(plan_of("unett"))


def test_a_users_own_network_is_passed_as_an_object():
    network = build_network(
        plan_of("mine"), architectures={"mine": lambda p: nn.Conv2d(1, p.dims, 1)}
    )
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
