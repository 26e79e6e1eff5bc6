"""Hot loops of `ops` and `losses`, each beside the plain formula it must agree with.

Nothing here is imported before its first use: neither Triton nor numba is needed to import
lesionseg.
"""
