"""Inference: from a scan to its candidates, by a trained model.

In comes a bundle and a scan; out comes a `Prediction` on the scan's own grid. `Predictor` is all of
it behind one call: `window` computes probabilities and boxes in tiles, `stitch` brings them onto
the scan's grid, `candidates` finds what they hold, `decision` accepts it.
"""

from lesionseg.inference.bundle import (
    Bundle,
    bundle_digest,
    read_bundle,
    write_bundle,
)
from lesionseg.inference.candidates import find_candidates
from lesionseg.inference.decision import accept, choose_operating_point
from lesionseg.inference.model_card import model_card
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.window import SlidingWindow, choose_device
from lesionseg.io.bundle_folder import resolve_bundle

__all__ = [
    "Bundle",
    "Predictor",
    "SlidingWindow",
    "accept",
    "bundle_digest",
    "choose_device",
    "choose_operating_point",
    "find_candidates",
    "model_card",
    "read_bundle",
    "resolve_bundle",
    "write_bundle",
]
