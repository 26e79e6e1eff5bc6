"""Files at a URL: listed as a folder, fetched when read, kept on local disk within a limit."""
