"""What all commands share about a run: its directory, log, progress, provenance and redaction."""
