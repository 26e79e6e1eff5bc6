"""The pages of a PDF as figures, before they are written."""

from lesionseg.reporting import pdf


def keep_pages(monkeypatch):
    """Return a list that will contain the figure of each page of the next PDF."""
    figures = []

    class Pages:
        """Keep the pages of a PDF as figures."""

        def __init__(self, path, metadata):
            path.touch()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def savefig(self, figure):
            figures.append(figure)

    monkeypatch.setattr(pdf, "PdfPages", Pages)
    return figures
