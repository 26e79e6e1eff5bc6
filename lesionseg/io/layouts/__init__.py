"""Dataset folders in every known layout, recognised by what lies in them.

In comes a folder; out comes a `Dataset` of case files with labels, groups and roles. No voxel is
read here.
"""
