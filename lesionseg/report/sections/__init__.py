"""The parts of the page beside the charts: tables, gallery, checklists and further pages."""
