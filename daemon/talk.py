"""How the commands talk: data to stdout, talk to stderr. The one place that writes to a terminal, so that nothing acts there.

Knows click and nothing of what is said. Whatever is said may have names of either store in it, or of whoever answers in
a store's place: it is shown line by line, as daemon.printable has it. `data` alone is as it is, for a program or a file.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from daemon.printable import printable
from daemon.secrecy import mask


def say(*lines: str) -> None:
    """Sentences for the person, each on a line."""
    for line in lines:
        click.echo(printable(line), err=True)


def fail(text: str | Sequence[str], code: int) -> NoReturn:
    """A sentence, or several, each on a line; and the end."""
    first, *others = [text] if isinstance(text, str) else text
    click.echo(f"{click.style('error', fg='red')}: {printable(first)}", err=True)
    say(*others)
    sys.exit(code)


def agreed(question: str, *, else_end: bool = True) -> bool:
    """Does the person say yes? Else, unless told otherwise, it is the end."""
    return click.confirm(printable(question), abort=else_end, err=True)


def show(*lines: str, mark: str = "", colour: str | None = None, bold: bool = False) -> None:
    """What was asked for, for the person, each on a line; `mark` stands before it and has the colour."""
    for line in lines:
        click.echo(f"{click.style(mark, fg=colour)}{click.style(printable(line), bold=bold or None)}")


def data(text: str, *, nl: bool = True) -> None:
    """What was asked for, to the letter: JSON, which escapes by itself, or SQL to be run."""
    click.echo(text, nl=nl)


def fields(values: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    width = max(len(name) for name in values)
    show(*(f"{name:<{width}}  {mask(_shown(value))}" for name, value in values.items()))


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case dict():
            return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
        case list():
            return "; ".join(_shown(each) for each in value)
    return str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what is in them."""
    cells = [[printable(cell) for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
