"""`serve`: a bundle behind HTTP; scans come in, masks go out, nothing stays.

`uploads` keeps what was sent in temporary folders and predicts one scan at a time, `app` is the
page and the REST interface, `label_api` what 3D Slicer's plug-in asks for. Only `app` and
`label_api` know FastAPI.
"""

from lesionseg.pipeline.serve.recipe import serve as serve

__all__ = ["serve"]
