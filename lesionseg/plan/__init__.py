"""From dataset statistics to decisions."""
