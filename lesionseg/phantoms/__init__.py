"""Simulated scans with exact references, for trying lesionseg out where no patient's data may go.

In come a seed and settings; out come image and reference arrays, or whole dataset folders. `head`,
`thorax` and `lungs` hold the anatomy, `head_mri`, `chest_xray` and `chest_ct` the physics of the
image and the lesions.
What is simulated says so in its own files; no number measured on it is a claim about patients.
"""

from lesionseg.phantoms.chest_ct import CtSettings, simulate_ct_case, write_ct_phantoms
from lesionseg.phantoms.chest_xray import XraySettings, simulate_xray_case, write_xray_phantoms
from lesionseg.phantoms.head_mri import MriSettings, simulate_mri_case, write_mri_phantoms
from lesionseg.phantoms.visits import VisitSettings, simulate_visits, write_visit_phantoms

__all__ = [
    "CtSettings",
    "MriSettings",
    "VisitSettings",
    "XraySettings",
    "simulate_ct_case",
    "simulate_mri_case",
    "simulate_visits",
    "simulate_xray_case",
    "write_ct_phantoms",
    "write_mri_phantoms",
    "write_visit_phantoms",
    "write_xray_phantoms",
]
