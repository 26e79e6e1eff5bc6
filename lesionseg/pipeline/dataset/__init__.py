"""What every command first learns about a dataset: its cases, lesions and roles.

In comes `data.root` or a simulator's settings; out comes a survey of readable cases with a split.
A case that cannot be used is refused by name.
"""
