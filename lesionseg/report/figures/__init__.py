"""Charts and pictures, drawn from the report's inputs; matplotlib is imported when one is drawn."""
