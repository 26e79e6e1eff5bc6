"""A network over whole volumes: tiles laid, computed, blended, restored to the file's grid."""
