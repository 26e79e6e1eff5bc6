"""Simulated scans with exact references, for trying lesionseg out where no patient's data may go.

`phantom_head` and `phantom_thorax` hold the anatomy, `phantom_mri` and `phantom_xray` the physics
of the image and the lesions. What is simulated says so in its own files; no number measured on it
is a claim about patients.
"""

from lesionseg.data.phantom_mri import MriSettings as MriSettings
from lesionseg.data.phantom_mri import simulate_mri_case as simulate_mri_case
from lesionseg.data.phantom_mri import write_mri_phantoms as write_mri_phantoms
from lesionseg.data.phantom_xray import XraySettings as XraySettings
from lesionseg.data.phantom_xray import simulate_xray_case as simulate_xray_case
from lesionseg.data.phantom_xray import write_xray_phantoms as write_xray_phantoms

__all__ = [
    "MriSettings",
    "XraySettings",
    "simulate_mri_case",
    "simulate_xray_case",
    "write_mri_phantoms",
    "write_xray_phantoms",
]
