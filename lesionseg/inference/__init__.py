"""Inference: find the candidates in a scan with a trained model.

`Predictor` takes a bundle and a scan, and returns a `Prediction` on the scan's own grid. `window`
computes probabilities and boxes in tiles, `stitch` combines the tiles, `candidates` finds
candidates in the probabilities, and `decision` chooses the operating point that accepts them.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.inference.box_candidates import MAX_ANCHORS as MAX_ANCHORS
    from lesionseg.inference.box_candidates import SAME_LESION_IN_A_TILE as SAME_LESION_IN_A_TILE
    from lesionseg.inference.bundle import Bundle as Bundle
    from lesionseg.inference.bundle import bundle_digest as bundle_digest
    from lesionseg.inference.bundle import ensemble as ensemble
    from lesionseg.inference.bundle import joint_digest as joint_digest
    from lesionseg.inference.bundle import read_bundle as read_bundle
    from lesionseg.inference.bundle import write_bundle as write_bundle
    from lesionseg.inference.candidates import find_candidates as find_candidates
    from lesionseg.inference.input_check import check_extent as check_extent
    from lesionseg.inference.predictor import Predictor as Predictor
    from lesionseg.inference.probabilities import box_scores as box_scores
    from lesionseg.inference.probabilities import label_probabilities as label_probabilities
    from lesionseg.inference.read_ahead import memory_budget as memory_budget
    from lesionseg.inference.read_ahead import needed_bytes as needed_bytes
    from lesionseg.inference.window import SlidingWindow as SlidingWindow
    from lesionseg.inference.window import choose_device as choose_device

_HOMES = {
    "Bundle": "bundle",
    "MAX_ANCHORS": "box_candidates",
    "Predictor": "predictor",
    "SAME_LESION_IN_A_TILE": "box_candidates",
    "SlidingWindow": "window",
    "box_scores": "probabilities",
    "bundle_digest": "bundle",
    "check_extent": "input_check",
    "choose_device": "window",
    "ensemble": "bundle",
    "find_candidates": "candidates",
    "joint_digest": "bundle",
    "label_probabilities": "probabilities",
    "memory_budget": "read_ahead",
    "needed_bytes": "read_ahead",
    "read_bundle": "bundle",
    "write_bundle": "bundle",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
