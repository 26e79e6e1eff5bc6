"""Inference: tiles put together, probabilities restored to the file, candidates, bundles."""
