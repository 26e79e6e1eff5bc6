"""One case judged: the lesions of its reference against the candidates of its prediction.

In come the two in memory, on one grid; out comes a `CaseResult` with every number of the case.
"""
