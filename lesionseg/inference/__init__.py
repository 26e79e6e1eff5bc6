"""Inference: find the candidates in a scan with a trained model.

`Predictor` takes a bundle and a scan, and returns a `Prediction` on the scan's own grid. `window`
computes probabilities and boxes in tiles, `stitch` combines the tiles, `candidates` finds
candidates in the probabilities, and `decision` chooses the operating point that accepts them.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.inference.bundle import Bundle as Bundle
    from lesionseg.inference.bundle import bundle_digest as bundle_digest
    from lesionseg.inference.bundle import read_bundle as read_bundle
    from lesionseg.inference.bundle import write_bundle as write_bundle
    from lesionseg.inference.candidates import find_candidates as find_candidates
    from lesionseg.inference.decision import choose_operating_point as choose_operating_point
    from lesionseg.inference.predictor import Predictor as Predictor
    from lesionseg.inference.window import SlidingWindow as SlidingWindow
    from lesionseg.inference.window import choose_device as choose_device

_HOMES = {
    "Bundle": "bundle",
    "Predictor": "predictor",
    "SlidingWindow": "window",
    "bundle_digest": "bundle",
    "choose_device": "window",
    "choose_operating_point": "decision",
    "find_candidates": "candidates",
    "read_bundle": "bundle",
    "write_bundle": "bundle",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
