"""An example of a package that lesionseg finds by its entry points."""
