"""An evaluation as tables on a terminal of any width; a number is never cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grrcoca_cli.commands.results import LABELS, PROXIES
from grrcoca_cli.evaluation.statistics import MIN_RANKED
from grrcoca_cli.provenance import as_lines

if TYPE_CHECKING:
    from rich.console import Console

    from grrcoca_cli.evaluation.judge import Evaluation

_LONGEST_WORD = 16
"""Width that is enough for a label: a longer word is continued on the next line."""


@dataclass(frozen=True)
class Sheet:
    """A table before it is laid out: the first column holds labels, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def show_tables(result: Evaluation, made_with: Mapping[str, Any]) -> None:
    """Print metrics, comparison, conflicts and groups as tables on stdout, then notes, signature and provenance."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    print_sheet(console, _metrics(result))
    if any(found.difference for found in result.results.values()):
        print_sheet(console, _comparison(result))
    if any(proxy.comparable for proxy in result.clinical.kinds.values()):
        print_sheet(console, _proxies(result))
    if result.groups:
        print_sheet(console, _groups(result))
    shape = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in result.diversity.items())
    console.print(f"captions: {shape}", markup=False, highlight=False)
    for note in result.notes:
        console.print(f"· {note}", markup=False, highlight=False)
    settings = " ".join(f"{name}={value}" for name, value in made_with.get("settings", {}).items() if value != "")
    for line in (
        result.signature,
        *(f"{name}: {value}" for name, value in as_lines(made_with).items()),
        f"settings: {settings}",
    ):
        console.print(line, style="dim", markup=False, highlight=False)


def print_sheet(console: Console, sheet: Sheet) -> None:
    """Print a table as wide as it needs; in a narrow console with folded labels, else one line per number."""
    from rich.table import Table
    from rich.text import Text

    widths = _widths(sheet, console.width)
    if not widths:
        console.print(Text(sheet.title, "italic"))
        for label, *cells in sheet.rows:
            console.print(Text(label, "bold"))
            for column, cell in zip(sheet.columns[1:], cells, strict=True):
                if cell:
                    console.print(Text(f"  {column}: {cell}"), highlight=False)
        return
    table = Table(title=Text(sheet.title), title_justify="left")
    for number, (column, width) in enumerate(zip(sheet.columns, widths, strict=True)):
        table.add_column(Text(column), justify="right" if number else "left", width=width, overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _widths(sheet: Sheet, room: int) -> list[int]:
    """Width of each column, or nothing where the numbers do not fit beside each other."""
    from rich.cells import cell_len

    columns = list(zip(sheet.columns, *sheet.rows, strict=True))
    room -= 3 * len(columns) + 1  # borders and padding
    natural = [max(map(cell_len, cells)) for cells in columns]
    if sum(natural) <= room:
        return natural
    words = [max(map(cell_len, column.split())) for column in sheet.columns]  # only headers may be broken at blanks
    narrow = [max(word, *map(cell_len, cells[1:])) for word, cells in zip(words[1:], columns[1:], strict=True)]
    label = room - sum(narrow)
    longest = max(cell_len(word) for text in columns[0] for word in text.split())
    return [label, *narrow] if label >= min(longest, _LONGEST_WORD) else []


def _metrics(result: Evaluation) -> Sheet:
    rows = [
        (LABELS.get(name, name), number(found.value), _interval(found.interval), number(found.floor, ""))
        for name, found in result.results.items()
        if name not in PROXIES
    ]
    images = f"{result.images} image{'' if result.images == 1 else 's'}"
    return Sheet(images, ("metric", "value", "95 % interval", "random caption"), rows)


def _comparison(result: Evaluation) -> Sheet:
    rows = [
        (
            LABELS.get(name, name),
            number(found.other),
            number(change.value, sign=True),
            _interval(change.interval, sign=True),
            f"{change.p:.4f}",
        )
        for name, found in result.results.items()
        if (change := found.difference) is not None
    ]
    columns = ("metric", "other", "difference", "95 %", "p")
    return Sheet("against the other captions, on the same images", columns, rows)


def _proxies(result: Evaluation) -> Sheet:
    rows = [
        (
            kind,
            f"{proxy.conflicts} of {proxy.comparable}",
            number(proxy.rate),
            f"{proxy.supported} of {proxy.said}",
            f"{proxy.supported} of {proxy.wanted}",
        )
        for kind, proxy in result.clinical.kinds.items()
    ]
    columns = ("kind", "conflicts", "rate", "mentions right", "mentions found")
    return Sheet("conflicts with the references (a proxy)", columns, rows)


def _groups(result: Evaluation) -> Sheet:
    shown = [name for name in ("caption_loss", "bleu4", "rouge_l", "cider_d") if name in result.groups[0].values]
    rows = [
        (
            group.name + ("" if group.images >= MIN_RANKED else " (too few to rank)"),
            str(group.images),
            *(number(group.values[metric]) for metric in shown),
        )
        for group in result.groups
    ]
    return Sheet("groups", ("group", "images", *(LABELS[name] for name in shown)), rows)


def number(value: float | None, absent: str = "-", *, sign: bool = False) -> str:
    """Four decimals; scientific notation where that would be long, or would show zero for what is not zero."""
    if value is None:
        return absent
    form = ".4f" if value == 0 or 5e-5 <= abs(value) < 1e6 else ".3e"
    return f"{value:{'+' if sign else ''}{form}}"


def _interval(interval: Any, *, sign: bool = False) -> str:
    return "" if interval is None else f"{number(interval.low, sign=sign)} to {number(interval.high, sign=sign)}"
