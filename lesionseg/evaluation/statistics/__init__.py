"""From the results of many cases to pooled numbers, curves and intervals.

In come `CaseResult`s; out come estimates with 95 % intervals that respect groups, or the reason
why there is none.
"""
