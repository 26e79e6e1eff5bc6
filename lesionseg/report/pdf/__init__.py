"""The report on paper: A4 pages of the summary, charts and pictures."""
