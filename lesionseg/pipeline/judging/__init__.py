"""Predict the cases of one role, choose what is still open on development cases, and score them.

Shared by `train`, `tune` and cross-validation. In come a network and cases; out come scores, and
the operating points, least size and calibration that a bundle keeps.
"""
