"""A small U-Net whose weights are drawn by numpy, and phantoms as its input."""

import nibabel as nib
import numpy as np
import torch

from lesionseg.inference import bundle
from lesionseg.models.build import build_network
from tests.models.plans import plan_of

SPACING = (3.0, 1.1, 0.9)  # mm, (z, y, x)
SHAPE = (14, 30, 36)


def make_plan_and_network():
    """Make a plan of two stages and its network."""
    plan = plan_of(
        dims=3,
        strides=((1, 1, 1), (1, 2, 2)),
        table={"kernels": ((1, 3, 3), (3, 3, 3)), "blocks": 1},
        channel_names=("T1",),
        spacing_mm=(3.0, 1.0, 1.0),
        tile_shape=(8, 16, 16),
        lesion_fraction=0.02,
    )
    return plan, draw_weights(build_network(plan))


def draw_weights(network):
    """Draw the kernels in the order of the parameters. Norms and biases are not changed.

    Kernels of the outputs are larger and sum to 0, so that probabilities are high and low.
    """
    rng = np.random.default_rng(12)
    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim > 1:
                std = (2 / np.prod(weights.shape[1:])) ** 0.5
                drawn = rng.normal(0, std, tuple(weights.shape))
                drawn = 3 * (drawn - drawn.mean()) if len(weights) == 1 else drawn
                weights.copy_(torch.from_numpy(drawn))
    return network.eval()


def write_bundle(folder):
    plan, network = make_plan_and_network()
    bundle.write_bundle(folder, network, plan, "A model card.")
    return folder


def make_phantom(seed):
    """Return a body of noise with bright blobs, `[z, y, x]` float32."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    image = rng.normal(100, 5, SHAPE)
    for _ in range(4):
        centre = rng.uniform(3, np.array(SHAPE) - 3)
        radius = rng.uniform(2, 4)
        apart = (grid - centre) * (2, 1, 1)
        image += rng.uniform(60, 120) * ((apart**2).sum(-1) < radius**2)
    middle = (grid - np.array(SHAPE) / 2) / (np.array(SHAPE) / 2)
    return np.where((middle**2).sum(-1) < 1.6, image, 0).astype(np.float32)


def oblique_affine():
    """Return the affine from array index (x, y, z) to RAS mm in a head rotated by 12° and 7°."""
    a = np.deg2rad(12)
    b = np.deg2rad(7)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(SPACING[::-1])
    affine[:3, 3] = (-20, 12.5, 40)
    return affine


def write_nifti(path, array, affine=None):
    """Write an array `[z, y, x]` as a file."""
    affine = oblique_affine() if affine is None else affine
    nib.save(nib.Nifti1Image(array.T, affine), path)
    return path
