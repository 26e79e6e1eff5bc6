from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lesionseg.core import Geometry, Volume
from lesionseg.inference.sliding.body import Body, find_body
from lesionseg.inference.sliding.scan_tiles import ScanTiles
from lesionseg.inference.sliding.sliding_window import SlidingWindow, Task
from lesionseg.inference.sliding.stitch import Store
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Plan
from tests.inference.networks import Identity

SHAPE = (50, 45, 60)


@pytest.fixture
def image(rng: np.random.Generator) -> Tensor:
    """Two balls of tissue in opposite corners, in noise."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    balls = ((grid - (15, 15, 18)) ** 2).sum(-1) < 11**2
    balls |= ((grid - (40, 37, 52)) ** 2).sum(-1) < 5**2
    return torch.from_numpy((300 * balls + rng.normal(0, 2, SHAPE)).astype(np.float32))[None]


@pytest.fixture
def body(image: Tensor) -> Body:
    found = find_body(Volume(image.numpy(), Geometry.from_spacing(SHAPE, (1, 1, 1))), "mri")
    assert found is not None
    return found


def _run(slide: ScanTiles, plan: Plan, *, seed: int = 0) -> Tensor:
    network = build_network(replace(plan, lesion_fraction=0.2), seed=seed)
    slider = SlidingWindow((network,), plan, dtype=torch.float32)
    list(slider.run(iter([Task(None, slide)])))
    assert slide.error is None
    return slide.store.decode(slide.store.values)


def test_skipping_air_changes_no_bit(image: Tensor, body: Body, plan: Plan) -> None:
    slides = [
        ScanTiles(image, plan, Store((1, *SHAPE)), body=body, skip=skip) for skip in (True, False)
    ]
    assert 0 < len(slides[0]) < len(slides[1])
    skipped, computed = (_run(slide, plan) for slide in slides)
    assert torch.equal(skipped, computed)
    mask = torch.from_numpy(body.rows(0, SHAPE[0]))
    assert not skipped[0][~mask].any()
    assert (skipped[0][mask] > 0).all()


def test_without_a_mask_every_voxel_is_covered(image: Tensor, plan: Plan) -> None:
    found = _run(ScanTiles(image, plan, Store((1, *SHAPE))), plan)
    assert (found > 0).all()


def test_inside_the_body_a_network_sees_the_same_with_and_without_its_mask(
    image: Tensor, body: Body, plan: Plan
) -> None:
    store = Store((1, *SHAPE), dtype=torch.float32)
    slide = ScanTiles(image / 100, plan, store, body=body)
    list(SlidingWindow((Identity(),), plan, dtype=torch.float32).run(iter([Task(None, slide)])))
    mask = torch.from_numpy(body.rows(0, SHAPE[0]))
    expected = torch.where(mask, (image / 100).sigmoid(), 0)
    torch.testing.assert_close(store.values, expected, atol=1e-6, rtol=1e-6)


def test_a_body_smaller_than_a_tile_is_seen_with_what_surrounds_it(
    image: Tensor, plan: Plan
) -> None:
    blocks = np.zeros((13, 12, 15), np.bool_)
    blocks[12, 0:2, 4] = True
    body = Body(blocks, (4, 4, 4), SHAPE)
    network = Identity()
    slide = ScanTiles(image, plan, Store((1, *SHAPE)), body=body)
    list(SlidingWindow((network,), plan).run(iter([Task(None, slide)])))
    assert network.seen == [(1, 1, 16, 16, 16)]
    assert slide.error is None
    assert (slide.store.decode(slide.store.values)[0] > 0).nonzero()[:, 0].min() == 48


def test_images_share_batches_and_come_in_order(plan: Plan) -> None:
    """Three images of 4, 1 and 2 tiles in batches of 3; nothing in the place of the third."""
    shapes = [(16, 16, 40), (16, 16, 16), None, (16, 16, 20)]
    images = [None if s is None else torch.randn(1, *s) for s in shapes]
    network = Identity()
    tasks = [
        Task(
            i,
            None
            if x is None
            else ScanTiles(x, plan, Store((1, *x.shape[1:]), dtype=torch.float32)),
        )
        for i, x in enumerate(images)
    ]
    done = list(SlidingWindow((network,), plan, batch_size=3, dtype=torch.float32).run(iter(tasks)))
    assert [task.tag for task in done] == [0, 1, 2, 3]
    assert [shape[0] for shape in network.seen] == [3, 3, 3]
    for task, x in zip(done, images, strict=True):
        if x is not None and task.scan is not None:
            torch.testing.assert_close(task.scan.store.values, x.sigmoid())


def test_tiles_wait_for_no_company_when_the_next_image_is_not_there_yet(plan: Plan) -> None:
    network = Identity()
    slides = [ScanTiles(torch.randn(1, 16, 16, 16), plan, Store((1, 16, 16, 16))) for _ in range(2)]
    run = SlidingWindow((network,), plan, batch_size=4).run(
        (Task(i, slide) for i, slide in enumerate(slides)), ready=lambda: False
    )
    assert next(run).tag == 0
    assert len(network.seen) == 1


def test_what_goes_wrong_with_one_image_is_its_own_error(plan: Plan) -> None:
    class Fails(Identity):
        def forward(self, image: Tensor) -> list[Tensor]:
            if float(image.max()) > 99:
                raise RuntimeError("too bright")
            return super().forward(image)

    images = [torch.zeros(1, 16, 16, 20) for _ in range(3)]
    images[1] += 100
    slides = [ScanTiles(x, plan, Store((1, *x.shape[1:]))) for x in images]
    done = list(SlidingWindow((Fails(),), plan).run(iter([Task(None, slide) for slide in slides])))
    assert [str(task.scan.error) if task.scan else "" for task in done] == [
        "None",
        "too bright",
        "None",
    ]
