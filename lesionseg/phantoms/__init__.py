"""Simulated scans with exact references, for trying lesionseg out where no patient's data may go.

In come a seed and settings; out come image and reference arrays, or whole dataset folders. `head`
and `thorax` hold the anatomy, `head_mri` and `chest_xray` the physics of the image and the lesions.
What is simulated says so in its own files; no number measured on it is a claim about patients.
"""

from lesionseg.phantoms.chest_xray import XraySettings as XraySettings
from lesionseg.phantoms.chest_xray import simulate_xray_case as simulate_xray_case
from lesionseg.phantoms.chest_xray import write_xray_phantoms as write_xray_phantoms
from lesionseg.phantoms.head_mri import MriSettings as MriSettings
from lesionseg.phantoms.head_mri import simulate_mri_case as simulate_mri_case
from lesionseg.phantoms.head_mri import write_mri_phantoms as write_mri_phantoms
from lesionseg.phantoms.visits import VisitSettings as VisitSettings
from lesionseg.phantoms.visits import simulate_visits as simulate_visits
from lesionseg.phantoms.visits import write_visit_phantoms as write_visit_phantoms

__all__ = [
    "MriSettings",
    "VisitSettings",
    "XraySettings",
    "simulate_mri_case",
    "simulate_visits",
    "simulate_xray_case",
    "write_mri_phantoms",
    "write_visit_phantoms",
    "write_xray_phantoms",
]
