"""Inference: from a scan to candidates, by a bundle.

`settings` are the user's choices; `body` says where the patient is, `slide` cuts an image into
tiles, `sliding` runs networks over those of many images, `stitch` puts them together and `store`
keeps what comes of it; `restore` goes back to the file's own grid; `regions` and `postprocess`
turn probabilities into candidates and accept them; `bundle` and `card` keep a model on disk;
`boxes` and `fusion` do the same for a detector. A case goes from `open_scan` through
`sliding_window` to `decision`; `predictor` is all of it behind one call.
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
from lesionseg.inference.device import choose_device as choose_device
from lesionseg.inference.inference_settings import InferenceSettings as InferenceSettings
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
