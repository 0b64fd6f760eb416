"""How the commands talk: data to stdout, talk to stderr.

Knows click and nothing of what is said.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click


def say(text: str) -> None:
    """A sentence for the person."""
    click.echo(text, err=True)


def fail(text: str, code: int) -> NoReturn:
    """A sentence, and the end."""
    click.echo(f"{click.style('error', fg='red')}: {text}", err=True)
    sys.exit(code)


def fields(values: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {_shown(value)}")


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
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
