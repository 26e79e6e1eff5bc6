"""Random changes to training tiles; image, mask and boxes move together.

In comes a tile with its random choices already drawn; out comes the changed tile, on the same
device.
"""
