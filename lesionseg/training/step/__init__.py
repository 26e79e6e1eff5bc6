"""One training step: targets, named loss terms, gradients, and the update of the weights."""
