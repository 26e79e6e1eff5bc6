"""Files at a URL: listed as a folder, fetched when a case is opened, kept within a limit of disk.

In comes a URL; out comes a local folder whose files are placeholders until they are fetched, or a
`RemoteFolder` to read and write single files.
"""
