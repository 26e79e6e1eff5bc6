"""The pretend cards: operations that CUDA rejects raise, and waits of the host are counted."""

import pytest
import torch

from tests.gpu.pretend_cuda import Card, pretend_cards


@pytest.fixture
def cards():
    with pretend_cards() as found:
        yield found


MIXED = {
    "a sum of both": lambda card, cpu: card + cpu,
    "a sum the other way round": lambda card, cpu: cpu + card,
    "a sum in place": lambda card, cpu: card.add_(cpu),
    "a CPU tensor indexed by a card's index": lambda card, cpu: cpu[card.long()],
    "a CPU tensor indexed by a card's mask": lambda card, cpu: cpu[card > 0],
    "a CPU tensor written at a card's index": lambda card, cpu: cpu.index_fill_(0, card.long(), 1),
    "a card's tensor written with a CPU's values": lambda card, cpu: card.__setitem__(
        card.long(), cpu
    ),
    "both in one list": lambda card, cpu: torch.cat([card, cpu]),
    "a CPU's number in a list": lambda card, cpu: torch.stack([card[0], cpu[0]]),
    "a product": lambda card, cpu: torch.dot(card, cpu),
    "a choice": lambda card, cpu: torch.where(card > 0, card, cpu),
    "places gathered": lambda card, cpu: cpu.gather(0, card.long()),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_mixture_of_card_and_cpu_raises(cards, mix):
    card = torch.arange(3.0, device="cuda")
    cpu = torch.arange(3.0)
    with pytest.raises(RuntimeError, match="same device"):
        mix(card, cpu)


def test_mixture_of_two_cards_raises():
    with pretend_cards(n_cards=2):
        first, second = (torch.ones(2, device=f"cuda:{i}") for i in range(2))
        with pytest.raises(RuntimeError, match="same device"):
            first + second
        assert (first.to("cuda:1") + second).tolist() == [2, 2]


def test_card_accepts_numbers_indices_and_copies_of_the_cpu(cards):
    card = torch.arange(3.0, device="cuda")
    cpu = torch.arange(3)
    assert (card * cpu[2] + 1).tolist() == [1, 3, 5]
    assert card[cpu.flip(0)].tolist() == [2, 1, 0]
    assert card.copy_(torch.ones(3)).tolist() == [1, 1, 1]
    assert isinstance(cpu.to("cuda"), Card)
    assert isinstance(cpu.to(card), Card)


def test_conversion_to_numpy_raises(cards):
    with pytest.raises(TypeError, match="numpy"):
        torch.zeros(3, device="cuda").numpy()


WAITING = {
    "a number": lambda x: float(x[0]),
    "a condition": lambda x: bool(x.any()),
    "places": lambda x: x.nonzero(),
    "a mask as index": lambda x: x[x > 0],
    "a mask to write at": lambda x: x.__setitem__(x > 0, 1.0),
    "to the CPU": lambda x: x.cpu(),
    "into a CPU tensor": lambda x: torch.zeros(3).copy_(x),
    "a list": lambda x: x.tolist(),
    "a constant": lambda x: torch.tensor([1.0], device="cuda"),
    "a constant like it": lambda x: x.new_tensor([1.0]),
    "from the CPU": lambda x: torch.zeros(3).to("cuda"),
    "by a CPU's index": lambda x: x[torch.tensor([0, 1])],
    "distinct values": lambda x: x.unique(),
    "all of it": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("ask", WAITING.values(), ids=WAITING)
def test_wait_is_counted_with_its_line(cards, ask):
    x = torch.arange(3.0, device="cuda")
    before = len(cards.waits)
    ask(x)
    assert len(cards.waits) == before + 1
    assert cards.waits[-1].place.startswith("tests/gpu/test_pretend_cuda.py:")


QUEUED = {
    "arithmetic": lambda x: (2 * x + 1).exp_(),
    "zeros": lambda x: torch.zeros(3, device="cuda"),
    "a choice": lambda x: torch.where(x > 0, x, 0.0),
    "slices": lambda x: x[1:].clone(),
    "places on the card": lambda x: x[torch.arange(2, device="cuda")],
    "from the CPU, not waited for": lambda x: torch.zeros(3).to("cuda", non_blocking=True),
    "the highest": lambda x: x.topk(2),
}


@pytest.mark.parametrize("ask", QUEUED.values(), ids=QUEUED)
def test_queued_operation_is_not_a_wait(cards, ask):
    x = torch.arange(3.0, device="cuda")
    before = len(cards.waits)
    ask(x)
    assert len(cards.waits) == before


def test_asynchronous_copy_has_wrong_numbers_until_its_event(cards):
    x = torch.ones(2, device="cuda")
    flag = torch.ones((), dtype=torch.bool, device="cuda")
    here = torch.zeros(2, pin_memory=True)
    there = torch.zeros((), dtype=torch.bool)
    here.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    there.copy_(flag, non_blocking=True)
    assert here.isnan().all()
    event.synchronize()
    assert here.tolist() == [1, 1]
    assert not there
    torch.cuda.synchronize()
    assert there


def test_gradients_on_a_card_equal_those_of_the_cpu(cards):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(1, 2, 3)
    x = torch.randn(2, 1, 5, 5)
    layer(x).square().sum().backward()
    on_card = torch.nn.Conv2d(1, 2, 3)
    on_card.load_state_dict(layer.state_dict())
    on_card.to("cuda")
    on_card(x.to("cuda")).square().sum().backward()
    assert isinstance(on_card.weight.grad, Card)
    assert torch.equal(on_card.weight.grad.cpu(), layer.weight.grad)


def test_optimiser_skips_a_step_if_a_flag_on_the_card_is_set(cards):
    weight = torch.nn.Parameter(torch.ones(2, device="cuda"))
    optimiser = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for found_inf, same in ((1.0, True), (0.0, False)):
        weight.grad = torch.ones(2, device="cuda")
        optimiser.found_inf = torch.full((), found_inf, device="cuda")
        before = len(cards.waits)
        optimiser.step()
        assert len(cards.waits) == before
        assert (weight.tolist() == [1, 1]) == same


def test_no_card_is_left_afterwards():
    with pretend_cards():
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
