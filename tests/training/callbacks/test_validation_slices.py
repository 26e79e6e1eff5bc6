"""Pictures of validation cases, of masks and of boxes."""

import numpy as np
from PIL import Image

from lesionseg.core import Candidate, Geometry, Prediction, Reference, Volume
from lesionseg.training.callbacks.drawing import PREDICTED, REFERENCE
from lesionseg.training.callbacks.previews import ValidationSlices

GEOMETRY = Geometry.from_spacing((4, 16, 16), (3.0, 1.0, 1.0))
GREY = Volume(np.random.default_rng(0).normal(size=(1, 4, 16, 16)).astype(np.float32), GEOMETRY)


def candidate(number: int, score: float, *, accepted: bool = True) -> Candidate:
    centre = (0.0, 0.0, 0.0)
    box = (1.0, 2.0, 2.0), (3.0, 6.0, 6.0)
    return Candidate(number, 1, score, *box, centre, 4.0, None, accepted=accepted)


def marked() -> Reference:
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    labels[2, 8:12, 8:12] = 1
    labels[1, 8, 8] = 1
    return Reference(GEOMETRY, labels=labels)


def colours(path, colour):
    return (np.asarray(Image.open(path)) == colour).all(-1)


def test_masks_are_drawn_at_the_slice_with_most_of_the_lesion(tmp_path):
    instances = np.zeros(GEOMETRY.shape, np.int32)
    instances[2, 2:6, 2:6], instances[2, 2:6, 12:14] = 1, 2
    found = candidate(1, 0.9), candidate(2, 0.1, accepted=False)
    shown = []
    slices = ValidationSlices(tmp_path, 2, lambda *told: shown.append(told))
    empty = Reference(GEOMETRY, labels=np.zeros(GEOMETRY.shape, np.uint8))
    for reference in (empty, marked(), marked(), marked()):
        slices.see(GREY, reference, Prediction("a", GEOMETRY, found, instances))
    assert slices.is_full
    slices.draw(7)
    slices.draw(8)  # nothing new
    (path,) = (tmp_path / "previews").iterdir()
    assert path.name == "validation_step_000007.png"
    picture = np.asarray(Image.open(path))[::12, ::12]
    assert picture.shape == (32, 32, 3)  # two of the three, two pictures each
    assert (picture[:16, :16] == REFERENCE).all(-1).sum() == 16  # around 4 x 4
    grey = picture[:16, :16].astype(int)
    filled = picture[:16, 16:].astype(int) != grey
    assert filled[2:6, 2:6].any(-1).all()
    assert not filled[2:6, 12:14].any()
    assert [(name, step) for name, _, step in shown] == [("validation", 7)]


def test_boxes_are_framed_from_a_least_score_on(tmp_path):
    slices = ValidationSlices(tmp_path, 4)
    found = (candidate(1, 0.9), candidate(2, 0.01))
    boxes = Reference(GEOMETRY, boxes=np.array([[1, 8, 8, 3, 12, 12]], np.float32), box_labels=(1,))
    slices.see(GREY, boxes, Prediction("a", GEOMETRY, found, None))
    slices.see(GREY, marked(), Prediction("b", GEOMETRY, found[1:], None))
    slices.draw(1)
    (path,) = (tmp_path / "previews").iterdir()
    orange, blue = (colours(path, c)[::12, ::12] for c in (PREDICTED, REFERENCE))
    assert orange[:16].sum() == 20  # 6 x 6 around 4 x 4
    assert not orange[16:].any()
    assert blue.sum() == 4 * 20


def test_each_validation_leaves_its_picture_before_the_logger_closes(train, tmp_path):
    slices = ValidationSlices(tmp_path, 1)

    def validate(network):
        slices.see(GREY, marked(), Prediction("a", GEOMETRY, (), np.zeros((4, 16, 16), np.int32)))
        return {}

    train(max_steps=2, validate=validate, validate_every_minutes=1e-9, callbacks=[slices])
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == [f"validation_step_00000{n}.png" for n in (1, 2)]
