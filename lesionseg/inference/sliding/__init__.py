"""A network over whole volumes: tiles laid, computed, blended and restored to the file's grid.

In come prepared scans; out come their probabilities and boxes on the plan's grid, and slab by slab
on the file's. Memory holds the image, one tile's height of sums and the stored probabilities.

scans ──▶ Predictor.infer_all ──▶ SlidingWindow.run ──▶ ScanTiles ──▶ Stitcher ──▶ Store
          one task per scan       batches of tiles      put(i, …)     add(…)       write(…)
             │                       │        │                          │
          spill(tag)              ready()  on_tile(done, total)       take_rows(first_row, average)

Each of the last line is a function that its user passes and the part above it calls:

- `spill`: before the tiles of a scan; the folder for a file of its probabilities, None for memory.
- `ready`: when a scan's tiles are queued; False where the next scan must be waited for. The tiles
  are then computed at once, in a batch that is not full of real ones.
- `on_tile`: after every batch, with the tiles done and all tiles of the scan that came last.
- `take_rows`: when no later tile reaches these rows; `ScanTiles` puts them into its `Store`.
"""
