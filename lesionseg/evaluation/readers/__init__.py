"""What readers said: verdicts on a report's lesions, and agreement of two who were blinded.

In come tables that people filled in; out come corrected counts with intervals, and kappa.
"""
