"""A bundle behind HTTP: scans come in, masks go out, nothing stays.

`answer` predicts one uploaded scan at a time; `uploads` keeps what was sent in temporary folders,
under names of its own; `app` is the page and the REST interface; `label_api` is the part of MONAI
Label's interface that 3D Slicer's plug-in asks for. Only `app` and `label_api` know FastAPI.
"""
