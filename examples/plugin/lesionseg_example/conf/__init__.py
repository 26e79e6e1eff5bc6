"""Options of lesionseg's groups, in the same folders as in lesionseg's `conf/`."""
