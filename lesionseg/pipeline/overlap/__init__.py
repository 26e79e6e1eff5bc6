"""`overlap`: which cases of a test set a model has seen in training, by the hashes in its card."""

from lesionseg.pipeline.overlap.recipe import overlap as overlap

__all__ = ["overlap"]
