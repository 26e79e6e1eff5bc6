"""Reading DICOM images and references (SEG, RTSTRUCT), and writing results (SEG, SR)."""
