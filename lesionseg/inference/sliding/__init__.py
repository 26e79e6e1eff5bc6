"""A network over whole volumes: tiles laid, computed, blended and restored to the file's grid.

In come images on the plan's grid; out come probabilities and boxes, slab by slab, within a stated
memory.
"""
