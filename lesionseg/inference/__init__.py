"""Inference: from a scan to its candidates, by a trained model.

In comes a bundle (`bundles/`) and a scan; out comes a `Prediction` on the scan's own grid.
`Predictor` is all of it behind one call: `sliding/` computes probabilities and boxes in tiles,
`candidates/` turns them into candidates and accepts them.
"""

from lesionseg.inference.bundles.bundle import Bundle as Bundle
from lesionseg.inference.bundles.bundle import bundle_digest as bundle_digest
from lesionseg.inference.bundles.bundle import read_bundle as read_bundle
from lesionseg.inference.bundles.bundle import resolve_bundle as resolve_bundle
from lesionseg.inference.bundles.bundle import write_bundle as write_bundle
from lesionseg.inference.bundles.model_card import model_card as model_card
from lesionseg.inference.candidates.acceptance import (
    apply_operating_point as apply_operating_point,
)
from lesionseg.inference.candidates.acceptance import (
    choose_operating_point as choose_operating_point,
)
from lesionseg.inference.candidates.postprocess import CandidateSet as CandidateSet
from lesionseg.inference.candidates.postprocess import find_candidates as find_candidates
from lesionseg.inference.inference_settings import InferenceSettings as InferenceSettings
from lesionseg.inference.inference_settings import choose_device as choose_device
from lesionseg.inference.predictor import Predictor as Predictor
from lesionseg.inference.sliding.restore import restore as restore
from lesionseg.inference.sliding.sliding_window import (
    predict_probabilities as predict_probabilities,
)
from lesionseg.inference.sliding.stitch import Stitcher as Stitcher

__all__ = [
    "Bundle",
    "CandidateSet",
    "InferenceSettings",
    "Predictor",
    "Stitcher",
    "apply_operating_point",
    "bundle_digest",
    "choose_device",
    "choose_operating_point",
    "find_candidates",
    "model_card",
    "predict_probabilities",
    "read_bundle",
    "resolve_bundle",
    "restore",
    "write_bundle",
]
