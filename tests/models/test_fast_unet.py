"""`FastUNet` computes what `UNet` computes."""

import pytest
import torch

from lesionseg.errors import GeometryError
from lesionseg.models.fast_unet import FastUNet, make_fast
from lesionseg.models.unet import UNet
from lesionseg.plan.plan import Architecture

SMALL = ((8, 16, 24), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)))
WIDE = ((16, 304), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))  # too wide for Winograd
FLAT = ((8, 16, 32), ((1, 1), (2, 2), (2, 2)), ((3, 3), (3, 3), (3, 3)))
ODD = ((8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 5), (3, 1, 1)))


def make_network(
    tables: tuple, *, residual: bool = False, layout: str = "lesionseg", n_labels: int = 1
) -> UNet:
    """A network with random scales and shifts in its norms."""
    features, strides, kernels = tables
    name = "residual_unet" if residual else "unet"
    architecture = Architecture(name, features, strides, kernels, n_supervised=1, layout=layout)
    torch.manual_seed(0)
    network = UNet(len(strides[0]), 2, architecture, (-2.0,) * n_labels, residual=residual)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        network.heads[0].conv.weight.normal_()
    return network.eval()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("tables", "shape", "n_labels"),
    [
        (SMALL, (6, 12, 20), 1),
        (SMALL, (2, 28, 4), 9),
        (WIDE, (4, 6, 10), 2),
        (FLAT, (20, 28), 3),
        (ODD, (6, 10, 14), 1),
    ],
)
def test_logits_are_those_of_the_unet(
    tables: tuple, shape: tuple[int, ...], n_labels: int, residual: bool
) -> None:
    network = make_network(tables, residual=residual, n_labels=n_labels)
    image = 3 * torch.randn(2, 2, *shape) + 1
    with torch.inference_mode():
        (expected,) = network(image)
        (found,) = FastUNet(network)(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_the_layout_of_nnunet_has_biases_of_transposed_convolutions() -> None:
    network = make_network(SMALL, layout="nnunet")
    image = torch.randn(1, 2, 4, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(
            FastUNet(network)(image)[0], network(image)[0], rtol=1e-4, atol=2e-4
        )


def test_the_number_of_threads_changes_only_rounding() -> None:
    network = FastUNet(make_network(SMALL))
    image = torch.randn(1, 2, 6, 40, 20)
    before = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(network(image)[0])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 6, 12, 21), (3, 6, 12, 20)])
def test_an_image_that_does_not_fit_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError):
        FastUNet(make_network(SMALL))(torch.zeros(1, *shape))


def test_other_networks_stay_as_they_are() -> None:
    other = torch.nn.Conv3d(1, 1, 1)
    narrow = make_network(((6, 8), SMALL[1][:2], SMALL[2][:2]))
    assert make_fast(other) is other
    assert make_fast(narrow) is narrow
    assert isinstance(make_fast(make_network(SMALL)), FastUNet)
