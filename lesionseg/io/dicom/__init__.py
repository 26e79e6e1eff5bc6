"""DICOM: series and radiographs in, SEG, RTSTRUCT as references, SEG and SR out."""
