"""The recipes: each command of the command line (`train`, `predict`, `evaluate` …) as a function.

They put the other packages together and hold no method of their own: data, plan, networks,
inference, evaluation and report. In come paths and plain settings, the arguments of a file in
`conf`; out go files in an output folder, written whole or not at all, and what they hold.
"""
