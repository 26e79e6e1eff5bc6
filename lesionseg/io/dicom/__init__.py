"""DICOM: series, radiographs and references in; segmentation objects and reports out.

In come files or folders; out come volumes in RAS millimetres, masks on the image's grid, and SEG
and SR files. pydicom is imported when such a file is read.
"""
