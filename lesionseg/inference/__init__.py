"""Inference: find the candidates in a scan with a trained model.

`Predictor` takes a bundle and a scan, and returns a `Prediction` on the scan's own grid. `window`
computes probabilities and boxes in tiles, `stitch` combines the tiles, `candidates` finds
candidates in the probabilities, and `decision` chooses the operating point that accepts them.
"""

from lesionseg.inference.bundle import (
    Bundle,
    bundle_digest,
    read_bundle,
    write_bundle,
)
from lesionseg.inference.candidates import find_candidates
from lesionseg.inference.decision import choose_operating_point
from lesionseg.inference.model_card import model_card
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.window import SlidingWindow, choose_device

__all__ = [
    "Bundle",
    "Predictor",
    "SlidingWindow",
    "bundle_digest",
    "choose_device",
    "choose_operating_point",
    "find_candidates",
    "model_card",
    "read_bundle",
    "write_bundle",
]
