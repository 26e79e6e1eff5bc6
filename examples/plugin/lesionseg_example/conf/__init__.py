"""Options of lesionseg's groups, laid out as its own `conf/` is."""
