"""Masks on every type that a column may have: what the target gets is the mask and never the value."""

import json

import psycopg

from tests.captured import Connection, changes, hashed, rows, value, watch
from tests.fidelity.kinds import KINDS, TYPES, Kind, array
from tests.fidelity.stores import SPELLING
from tests.fidelity.test_values import SESSIONS

STARRED = {"text", "varchar", "character", "bpchar", "name"}


def make(conn: Connection, kind: Kind) -> bool:
    """A table with a column for each mask, plain and as an array; False where this server has no such type."""
    of = f"{kind.name}{kind.modifier}"
    columns = ", ".join(f"{mask} {of}, {mask}_many {of}[]" for mask in ("hashed", "starred", "emptied"))
    try:
        with conn.transaction():
            conn.execute(f"create table {kind.table} (id int primary key, {columns})".encode())
            conn.execute(f"select %s::{of}".encode(), (kind.values[0],))
    except (psycopg.errors.UndefinedObject, psycopg.errors.FeatureNotSupported):
        return False
    masks = {"hashed": "hash", "starred": "redact", "emptied": "null"}
    watch(
        conn,
        kind.table,
        mask=json.dumps({f"{name}{end}": mask for name, mask in masks.items() for end in ("", "_many")}),
    )
    return True


def canonical(kind: Kind, text: str | None) -> str | None:
    """The text that is hashed."""
    if text is None:
        return None
    if kind.name == "numeric" and text not in {"NaN", "Infinity", "-Infinity"}:
        return text.rstrip("0").rstrip(".") if "." in text else text
    if kind.name in {"character", "bpchar"}:
        return text.rstrip(" ")
    return "0" if kind.name in {"real", "double precision"} and text == "-0" else text


def test_a_mask_lets_no_value_of_any_type_through(scratch: Connection) -> None:
    """From any session: hash is of the text that the type itself writes, redact stars or NULL, null NULL."""
    scratch.execute(TYPES.format(extensions="").encode())
    key = value(scratch, "select outbox.make_mask_key()") or value(scratch, "select key from outbox.mask_key")
    kinds = [kind for kind in KINDS if not kind.extension and make(scratch, kind)]
    assert len(kinds) > 80
    for number, session in enumerate(["as it comes", "German", "Postgres", "few digits", "quoting"]):
        for kind in kinds:
            one = [(text, array([text, None], [2], [1], kind.delimiter)) for text in kind.values]
            with scratch.transaction():
                for at, (text, many) in enumerate(one):
                    scratch.execute(SESSIONS[session].replace("set ", "set local ").encode())
                    scratch.execute(
                        f"insert into {kind.table} values (%s, %s, %s, %s, %s, %s, %s)".encode(),
                        (number * 100 + at, *(text, many) * 3),
                    )
            scratch.execute(f"insert into {kind.table} (id) values ({number * 100 + 99})".encode())
    scratch.execute(
        SPELLING.replace("set ", "set local ").replace("extra_float_digits = 3", "extra_float_digits = 1").encode()
    )
    for kind in kinds:
        texts = {
            row[0]: row[1:]
            for row in rows(
                scratch,
                f"select id, case when hashed is distinct from null then concat(hashed) end, case when hashed_many is distinct from null then concat(hashed_many) end from {kind.table}",
            )
        }
        recorded = changes(scratch, f"public.{kind.table}")
        assert len(recorded) == len(texts)
        for change in recorded:
            assert change.op == "upsert"
            row = json.loads(change.row or "")
            plain, many = texts[row["id"]]
            stars = "***" if kind.name in STARRED and plain is not None else None
            digest = [
                None if text is None else hashed(key, f"public.{kind.table}.{column}", text)
                for column, text in (("hashed", canonical(kind, plain)), ("hashed_many", many))
            ]
            assert row == {
                "id": row["id"], "hashed": digest[0], "hashed_many": digest[1], "starred": stars, "starred_many": None,
                "emptied": None, "emptied_many": None,
            }, (kind, plain)  # fmt: skip
