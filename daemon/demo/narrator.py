"""How the demo speaks: plain lines that need no terminal. Colour only where there is one.

Knows words and columns. Must not know where a number is from.
"""

from collections.abc import Mapping, Sequence
from statistics import median

import click

from daemon.demo.compare import Comparison
from daemon.demo.observer import Sight

_COLOURS = {"closed": "green", "open": "red", "half_open": "yellow"}
_SHOWN = 5  # keys of a table that is not equal


def say(text: str = "") -> None:
    click.echo(text)


def title(text: str) -> None:
    click.secho(text, bold=True)


def fact(name: str, text: str) -> None:
    click.echo(f"  {name:<9} {text}")


def explain() -> None:
    """The words of `second`."""
    say("\nOne line a second from here on:")
    fact("written", "transactions that the application has committed")
    fact("applied", "changed rows that have arrived in Supabase")
    fact("waiting", "changed rows that are committed and have not arrived yet: they are safe in the outbox")
    fact("lag", "age of the oldest change: of those waiting, or when it arrived")
    fact(
        "breaker",
        "closed: outboxd sends. open: Supabase is away, outboxd leaves it alone. half_open: one request tries",
    )


def second(sight: Sight, written: int, rate: float) -> None:
    """What happened in one second."""
    for news in sight.news:
        say(f"  → {news}")
    breaker = click.style(sight.breaker, fg=_COLOURS[sight.breaker])
    say(
        f"  written {written:>6}   applied {sight.applied:>7}  ({rate:>5.0f}/s)   waiting {sight.waiting:>6}"
        f"   lag {sight.lag:>6.2f} s   breaker {breaker}"
    )


def comparison(tables: Sequence[Comparison]) -> bool:
    """One line a table, and the keys of the first rows that are not equal. Whether all are."""
    width = max(len(table.table) for table in tables)
    head = f"  {'table':<{width}} | source rows | target rows | equal"
    say(f"{head}\n  {'-' * width}-+-------------+-------------+------")
    for one in tables:
        answer = click.style("yes", fg="green") if one.equal else click.style("NO", fg="red")
        say(f"  {one.table:<{width}} | {one.source_rows:>11} | {one.target_rows:>11} | {answer}")
    for one in tables:
        for name, keys in (("missing", one.missing), ("extra", one.extra), ("different", one.different)):
            if keys:
                more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                say(f"  {one.table}: {len(keys)} {name} on the target: {', '.join(keys[:_SHOWN])}{more}")
    equal = all(one.equal for one in tables)
    if equal:
        title("  Every row is equal.")
    else:
        title("  The stores are NOT equal. That is a bug of outboxd: please report it, with the lines above.")
    return equal


def summary(
    written: int, rolled_back: int, applied: int, lags: Mapping[str, Sequence[float]], breaker: Sequence[str]
) -> None:
    """What was seen, in a few lines. `lags` are those before, during and after the outage."""
    fact("written", f"{written} transactions; {rolled_back} more were rolled back and left no trace")
    fact("applied", f"{applied} changed rows")
    fact("lag", f"before the outage: {_usual(lags['before'])}")
    fact("", f"during the outage: it grew to {max(lags['during'], default=0.0):.1f} s")
    fact("", f"after the outage:  {_usual(lags['after'])}")
    fact("breaker", _states(breaker))


def _usual(lags: Sequence[float]) -> str:
    return f"{median(lags):.3f} s typically, {max(lags):.3f} s at worst" if lags else "nothing was written"


def _states(seen: Sequence[str]) -> str:
    attempts = seen.count("half_open")
    if attempts < 2:
        return " → ".join(seen)
    return f"closed → open → half_open → {seen[-1]} (at attempt {attempts}; until then open again)"
