"""Training: the only room that knows Lightning.

Kept empty of imports, so that a configuration can name `training.settings` without loading it;
the entrance is `training.fit.fit`.
"""
