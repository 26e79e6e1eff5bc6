"""The recipes of the commands, one file each. A recipe calls the packages below in order."""
