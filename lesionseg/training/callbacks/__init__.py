"""What happens between training steps: checkpoints, records, validation, previews, audits.

In comes the Lightning module after a batch; out go files of the run directory. None of them changes
a gradient.
"""
