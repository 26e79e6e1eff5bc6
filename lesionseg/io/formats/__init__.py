"""Volumes in files: NIfTI, NRRD, MetaImage and rasters, by the suffix of the name.

In comes a path; out comes a `Volume` or its geometry. Headers are checked before anything is
allocated, and a bad file is refused by name.
"""
