"""Tables of `grrcoca eval` at any width of the terminal."""

import io

import pytest
from rich.console import Console

from grrcoca_cli.commands.result_tables import Sheet, number, print_sheet

ROWS = [
    ("perplexity (word)", number(26864703354360048.0), f"{number(947.4151)} to {number(3.1e17)}", ""),
    ("BLEU-4", number(0.3385), f"{number(0.2066)} to {number(0.5127)}", number(0.1932)),
    ("calibration error (ECE)", number(0.00001), "", number(None)),
]


def printed(sheet: Sheet, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    print_sheet(console, sheet)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_number_is_cut(width: int) -> None:
    sheet = Sheet("3 images", ("metric", "value", "95 % interval", "random caption"), ROWS)
    text = printed(sheet, width)
    assert "…" not in text
    for row in ROWS:
        for cell in row[1:]:
            assert cell in text
    assert all(word in text for word in ("perplexity", "(word)", "calibration", "BLEU-4"))
    if width >= 40:
        assert max(map(len, text.splitlines())) <= width


def test_a_narrow_console_gets_one_line_per_number() -> None:
    sheet = Sheet("3 images", ("metric", "value", "95 % interval", "random caption"), ROWS)
    assert "  95 % interval: 947.4151 to 3.100e+17\n" in printed(sheet, 40)
    assert "┃" in printed(sheet, 80)


def test_a_long_label_is_folded_and_markup_is_text() -> None:
    text = printed(Sheet("groups", ("group", "images"), [("[bold]" + "x" * 200, "12345")]), 40)
    assert "[bold]" in text
    assert text.count("x") == 200
    assert "12345" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (26864703354360048.0, "2.686e+16"),
        (7016.559, "7016.5590"),
        (0.0, "0.0000"),
        (0.00001, "1.000e-05"),
        (-1234567.0, "-1.235e+06"),
        (None, "-"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text
