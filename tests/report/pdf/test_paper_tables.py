from matplotlib.figure import Figure

from lesionseg.report.pdf.paper import Frame
from lesionseg.report.pdf.paper_tables import Block, table_pages
from lesionseg.report.sections.table_cells import Listing, TableCell

FRAME = Frame(50, 500, 780, 50, page=(600, 842))


def listing(n: int, omitted: int = 0) -> Listing:
    return Listing(
        ("a", "b"), tuple((TableCell(str(i)), TableCell("word " * 60)) for i in range(n)), omitted
    )


def set_pages(*blocks: Block) -> list[list[str]]:
    def omitted(n: int) -> str:
        return f"{n} more"

    pages = table_pages(blocks, FRAME, Figure, omitted)
    return [[words.get_text() for words in page.texts] for page in pages]


def test_long_table_runs_on_with_its_headings() -> None:
    pages = set_pages(Block("Long", listing(40)))
    assert len(pages) > 1
    assert pages[0][:3] == ["Long", "a", "b"]
    assert all(page[:2] == ["a", "b"] for page in pages[1:])
    rows = [words for page in pages for words in page if words.isdigit()]
    assert rows == [str(i) for i in range(40)]


def test_words_stay_on_the_page() -> None:
    for page in table_pages([Block("Long", listing(40))], FRAME, Figure, str):
        heights = [words.get_position()[1] for words in page.texts]
        assert max(heights) <= 780 / 842
        assert min(heights) >= 50 / 842


def test_rows_left_out_are_counted() -> None:
    (page,) = set_pages(Block("Short", listing(4, omitted=3), most=2))
    assert page[-1] == "5 more"


def test_empty_tables_have_no_page() -> None:
    assert set_pages(Block("Empty", listing(0))) == []


def test_chosen_columns_alone_are_set() -> None:
    (page,) = set_pages(Block("One", listing(1), (1.0,), (0,)))
    assert page == ["One", "a", "0"]
