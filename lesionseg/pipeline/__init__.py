"""The recipes: one file per command, which orders the steps of the packages below."""
