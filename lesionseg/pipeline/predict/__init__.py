"""`predict`: a bundle and scans in; masks, candidates and a status per scan out.

`recipe` is the command, `engine` decides where cases are worked on, `case_pipeline` reads, infers
and writes them with the steps overlapped. One bad file never ends the batch: its row says why.
"""

from lesionseg.pipeline.predict.recipe import predict as predict

__all__ = ["predict"]
