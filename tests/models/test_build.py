"""The closed table of networks."""

import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.models import build_network
from lesionseg.models.build import bf16_is_faster
from tests.models.plans import plan_of


def test_the_seed_alone_decides_the_weights_and_the_global_random_state_stays():
    before = torch.random.get_rng_state()
    first, same, other = (build_network(plan_of(), seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    kernel = "encoder.stages.0.0.conv.weight"
    assert not torch.equal(first[kernel], other[kernel])


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError):
        build_network(plan_of("unett"))


@pytest.mark.parametrize(
    ("says", "faster"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16", False),  # measured: slower than fp32
        ("", False),
    ],
)
def test_a_processor_computes_in_bf16_where_that_is_faster(says, faster):
    assert bf16_is_faster(says) is faster
