"""Formats of files: NIfTI, NRRD, MetaImage and rasters, a module each (`io.volumes` chooses one).

In comes a path; out comes a `Volume` or its geometry. Headers are checked before anything is
allocated, and a bad file is refused by name.
"""
