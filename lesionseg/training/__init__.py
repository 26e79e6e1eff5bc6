"""Training: the only package that knows Lightning.

Kept empty of imports, so that a configuration can name `training.settings` without loading it;
the entrance is `training.fit.fit`.
"""
