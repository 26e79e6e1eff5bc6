"""What a report is made from: score files and tables as types, images and masks of a case.

In come the folders and files that `evaluate` wrote; out come frozen dataclasses. No metric is
computed here.
"""
