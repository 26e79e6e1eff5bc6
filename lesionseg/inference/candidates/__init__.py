"""From probabilities and boxes to candidates, on the file's own grid.

In come voxel probabilities, a detector's boxes or both; out come candidates, scored, merged, and
accepted by the operating point.
"""
