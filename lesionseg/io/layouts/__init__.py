"""Dataset folders in every known layout, recognised by what lies in them.

In comes a folder; out comes a `Dataset` of case files with labels, groups and roles. Tables are
read, and of images the header of the first (of BIDS the grids of the first session, of DICOM
radiographs what each states). References that tables hold are drawn here when a case is read.
"""
