"""Prepared cases on disk: written once by whichever process is first, read as memory maps.

In come a dataset and a plan; out come `CachedCase`s from which tiles are copied. A folder or a URL
holds the cache.
"""
