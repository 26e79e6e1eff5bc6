"""A model on disk: a bundle read and written, and exported for other programs.

In comes a folder; out come a network and its plan. Nothing is unpickled and nothing named in a
file is imported.
"""
