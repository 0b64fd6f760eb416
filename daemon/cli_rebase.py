"""`outboxd rebase`: say why the relay halts, what would be sent again and what nobody can know; then do it.

Knows how to ask and how to print.
"""

import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from daemon.configuration import load
from daemon.talk import data, fields, say, show, table

if TYPE_CHECKING:
    from daemon.rebase import Outlook

FOUND = 3


@click.command()
@click.option("--yes", is_flag=True, help="Do it. Without, only look.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def rebase(ctx: click.Context, *, yes: bool, as_json: bool) -> None:
    """Begin anew after the source went back in time: send again what its outbox has. 3: a rebase is needed."""
    from daemon import rebase as work  # with both transports: not for `outboxd --help`

    settings = load(ctx.obj, needs=("source", "target"))
    if yes:
        found, standing = asyncio.run(work.rebase(settings))
    else:
        found, standing = asyncio.run(work.look(settings)), None
    if as_json:
        data(json.dumps(_outlook(found) | {"rebased": standing is not None}, indent=2))
    elif found.why is None:
        say("nothing to rebase: this source holds what the target has from it")
    else:
        _print_outlook(found)
        say(
            f"done: the relay goes on from {'the beginning of the outbox' if found.again else 'where the target stands'} "
            f"(epoch {standing.epoch}); a running one goes on or restarts"
            if standing
            else "nothing was changed; to do it:  outboxd rebase --yes"
        )
    sys.exit(FOUND if found.why and standing is None else 0)


def _outlook(found: "Outlook") -> dict[str, Any]:
    cursor = found.standing.cursor
    mark = cursor.mark if cursor else None
    return {
        "why": found.why,
        "cursor": cursor and {
            "snapshot": cursor.snapshot, "floor_id": cursor.floor_id, "system": cursor.system,
            "installation": cursor.installation,
            "timeline": mark and mark.timeline, "lsn": mark and mark.lsn,
        },
        "source": {
            "system": found.source.system, "installation": found.source.installation, "timeline": found.source.timeline,
        },
        "send_again": [asdict(each) for each in found.waiting] if found.again else [],
        "pruned_up_to_id": found.pruned,
        "came_with_a_dump": found.foreign,
        "held_keys": len(found.held),
        "copied": list(found.copied),
        "emitted": list(found.emitted),
    }  # fmt: skip


def _print_outlook(found: "Outlook") -> None:
    told = _outlook(found)
    fields({name: told[name] for name in ("why", "cursor", "source")})
    show("")
    if found.again:
        rows = [(each.table, str(each.changes), f"{each.oldest_s:.0f} s") for each in found.waiting]
        table(("SENT AGAIN", "CHANGES", "OLDEST"), rows)
        show("")
    if found.copied:
        say(
            f"copied as a whole: {', '.join(found.copied)}; rows of the target that this source does not have are deleted there"
        )
    if found.copied and found.emitted:
        say(f"what the outbox no longer has of {', '.join(found.emitted)} only the application can emit again")
    if found.foreign:
        say(f"{found.foreign} changes came with a dump: their transaction ids are written anew")
    if found.held:
        say(f"{len(found.held)} keys with a dead letter stay held")
    if not found.again:
        say("nothing is sent again: from where it stands this target is the relay's, and no other")
        return
    say("each of these rows goes through its states once more on the target, and ends with its last")
    if found.copied:
        return
    say(
        "not known here: rows that only the lost changes wrote, and rows whose last change was pruned"
        f"{f' (up to change {found.pruned})' if found.pruned else ''}, stay on the target as they are there. "
        "Compare them; touch a row on the source, and it travels anew"
    )
