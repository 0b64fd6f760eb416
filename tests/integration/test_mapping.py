"""Mapping on the source: what a row becomes before it reaches the outbox, which rows do, and what watch refuses."""

import json
from typing import Any

import psycopg
import pytest

from tests.captured import Connection, assert_replays, changes, hashed, ops, rows, value, watch
from tests.databases import Database

PEOPLE = """
    create table person (id int primary key, "authorId" int, email text, phone varchar(20), note text, age int,
                         deleted_at timestamptz, kind text not null default 'public')
"""


def mapped(conn: Connection, **mapping: Any) -> str:
    """Watch the table with a mapping; dicts are given as JSON."""
    return watch(
        conn, "person", **{name: json.dumps(one) if isinstance(one, dict) else one for name, one in mapping.items()}
    )


def written(conn: Connection) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Each change: op, key, row."""
    return [(c.op, c.key, json.loads(c.row) if c.row else None) for c in changes(conn)]


def test_a_row_reaches_the_outbox_renamed_masked_and_with_its_constants(scratch: Connection) -> None:
    """Every kind of mapping at once; NULL stays NULL; the shape has the names of the target."""
    scratch.execute(PEOPLE)
    mapped(
        scratch, exclude=["age", "deleted_at", "kind"], rename={"authorId": "user_id", "email": "mail"},
        constant={"origin": "ma'in\\"}, mask={"email": "hash", "phone": "redact", "note": "null"},
    )  # fmt: skip
    scratch.execute("insert into person values (1, 7, 'a@b', '555', 'psst'), (2, null, null, null, null)")
    key = value(scratch, "select key from outbox.mask_key")
    digest = hashed(key, "public.person.email", "a@b")
    assert written(scratch) == [
        ("upsert", '{"id":1}', {"id": 1, "user_id": 7, "mail": digest, "phone": "***", "note": None, "origin": "ma'in\\"}),
        ("upsert", '{"id":2}', {"id": 2, "user_id": None, "mail": None, "phone": None, "note": None, "origin": "ma'in\\"}),
    ]  # fmt: skip
    assert rows(scratch, "select columns from outbox.shape") == [
        (["id", "user_id", "mail", "phone", "note", "origin"],)
    ]


def test_a_renamed_key_travels_under_its_new_name(scratch: Connection) -> None:
    """In key and row, of upserts and of deletes, copied or re-read."""
    scratch.execute("create table item (a int, b text, v int, primary key (a, b))")
    watch(scratch, "item", rename=json.dumps({"b": "code"}))
    scratch.execute("insert into item values (1, 'x', 0); update item set b = 'y'; delete from item")
    assert written(scratch) == [
        ("upsert", '{"a":1,"code":"x"}', {"a": 1, "code": "x", "v": 0}),
        ("delete", '{"a":1,"code":"x"}', None),
        ("upsert", '{"a":1,"code":"y"}', {"a": 1, "code": "y", "v": 0}),
        ("delete", '{"a":1,"code":"y"}', None),
    ]


def test_rows_enter_and_leave_the_filter(scratch: Connection) -> None:
    """Leaving is a delete, entering an upsert; a row that never was inside is not spoken of."""
    scratch.execute(PEOPLE)
    mapped(scratch, include=["id", "note"], filter="deleted_at is null -- and not gone")
    scratch.execute("insert into person (id, note, deleted_at) values (1, 'a', null), (2, 'b', now())")
    assert written(scratch) == [("upsert", '{"id":1}', {"id": 1, "note": "a"})]
    scratch.execute("delete from outbox.change; update person set note = note || '!'")
    assert written(scratch) == [("upsert", '{"id":1}', {"id": 1, "note": "a!"})]
    scratch.execute("delete from outbox.change; update person set deleted_at = case id when 1 then now() end")
    assert written(scratch) == [("delete", '{"id":1}', None), ("upsert", '{"id":2}', {"id": 2, "note": "b!"})]
    scratch.execute("delete from outbox.change; delete from person")
    assert written(scratch) == [("delete", '{"id":2}', None)]


def test_a_key_that_moves_is_re_read_with_the_filter(scratch: Connection) -> None:
    """The old key goes, the new one comes only if its row passes."""
    scratch.execute(PEOPLE)
    mapped(scratch, include=["id", "note"], filter="kind = 'public'")
    scratch.execute("insert into person (id, kind) values (1, 'public'), (2, 'private')")
    scratch.execute("delete from outbox.change; update person set id = id + 10")
    assert {(op, key) for op, key, _ in written(scratch)} == {
        ("delete", '{"id":1}'), ("upsert", '{"id":11}'), ("delete", '{"id":2}'), ("delete", '{"id":12}'),
    }  # fmt: skip


def test_a_filter_that_fails_for_a_row_marks_the_table_and_not_the_statement(scratch: Connection) -> None:
    """Promise I7: division by zero in the filter is ours, not the application's. The other rows travel."""
    scratch.execute(PEOPLE)
    mapped(scratch, include=["id"], filter="10 / age > 1")
    scratch.execute("insert into person (id, age) values (1, 2), (2, 0), (3, 100)")
    assert written(scratch) == [("upsert", '{"id":1}', {"id": 1}), ("resync", "{}", None)]
    scratch.execute("delete from outbox.change; update person set age = 0 where id = 1")
    assert ops(scratch) == ["resync"]
    scratch.execute("delete from outbox.change; update person set id = 5 where id = 1")
    assert sorted(ops(scratch)) == ["delete", "resync"]
    scratch.execute("delete from outbox.change; delete from person")
    assert sorted(ops(scratch)) == ["delete", "delete"]


def test_a_filter_that_asserts_marks_the_table_as_well(scratch: Connection) -> None:
    """No `when others` sees a failed assertion of a function that the filter calls."""
    scratch.execute(PEOPLE)
    scratch.execute(
        "create function sure(int) returns bool language plpgsql immutable as $$ begin assert $1 > 0; return true; end $$"
    )
    mapped(scratch, include=["id"], filter="public.sure(age)")
    scratch.execute("insert into person (id, age) values (1, 2), (2, 0)")
    assert sorted(ops(scratch)) == ["resync", "upsert"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a masked key": ({"mask": {"id": "hash"}}, "key column id cannot be masked"),
    "an unknown mask": ({"mask": {"email": "md5"}}, "null, hash or redact, not email = md5"),
    "a mask of no column": ({"mask": {"mail": "null"}}, "speaks of mail"),
    "a mask of a column left out": ({"exclude": ["email"], "mask": {"email": "null"}}, "speaks of email"),
    "a name that is taken": ({"rename": {"email": "note"}}, "two columns would be called note"),
    "two new names alike": ({"rename": {"email": "x", "note": "x"}}, "two columns would be called x"),
    "a constant in a column's place": ({"constant": {"id": "1"}}, "two columns would be called id"),
    "a name too long": ({"rename": {"email": "é" * 32}}, "1 to 63 bytes"),
    "an empty name": ({"constant": {"": "x"}}, "1 to 63 bytes"),
    "a constant that is no text": ({"constant": {"n": 1}}, "JSON object of texts"),
    "a mapping that is no object": ({"mask": "[]"}, "JSON object of texts"),
    "a filter that is no expression": ({"filter": "deleted_at is"}, "its filter is refused: syntax error"),
    "a filter on no column": ({"filter": "true"}, "names no column"),
    "a filter of another table": ({"filter": "other > 1"}, "other"),
    "a filter that is no boolean": ({"filter": "age"}, "must be type boolean"),
    "a subquery": ({"filter": "age in (select 1)"}, "subquery"),
    "another table": ({"filter": "exists (select from public.person p where p.age = person.age)"}, "subquery"),
    "a volatile function": ({"filter": "age > random()"}, "random"),
    "a volatile function in an operator": ({"filter": "age operator(public.~>) 1"}, "public.tossed"),
    "the time of day": ({"filter": "deleted_at > clock_timestamp()"}, "clock_timestamp"),
    "an aggregate": ({"filter": "count(age) > 1"}, "aggregate"),
    "a set": ({"filter": "generate_series(1, age) > 1"}, "set-returning"),
    "the whole row": ({"filter": "person is not null"}, "name its columns"),
    "a system column": ({"filter": "xmin::text <> '1' and age > 1"}, "system column"),
    "division by zero for all rows": ({"filter": "age > 1 / 0"}, "division by zero"),
    "a function without its schema": ({"filter": "quiet(age)"}, "quiet"),
    "a second statement": ({"filter": "age > 1); drop table person; select (true"}, "refused"),
    "a mapping of what is emitted": ({"capture": False, "mask": {"email": "hash"}}, "emits travels as it is given"),
    "a target without a schema": ({"target": "people"}, "with its schema"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_mapped_is_refused_with_a_sentence(scratch: Connection, case: str) -> None:
    """At watch, never in a statement of the application; and nothing of it is kept."""
    options, because = REFUSED[case]
    scratch.execute(PEOPLE)
    scratch.execute("create function quiet(int) returns bool immutable language sql as 'select true'")
    scratch.execute("create function tossed(int, int) returns bool volatile language sql as 'select true'")
    scratch.execute("create operator ~> (leftarg = int, rightarg = int, function = tossed)")
    with pytest.raises(psycopg.errors.InvalidParameterValue) as refused, scratch.transaction():
        mapped(scratch, **options)
    message = refused.value.diag.message_primary or ""
    assert message.startswith(("cannot watch public.person: ", "cannot watch public.person as people: ")), message
    assert because in message
    assert rows(scratch, "select 1 from outbox.watched") == []
    assert rows(scratch, "select relname from pg_class where relname like 'probe%' or relname = 'people'") == []
    scratch.execute("insert into person (id, age) values (1, 1)")


def test_watching_again_keeps_the_mapping_until_it_is_taken_away(scratch: Connection) -> None:
    """A mask that is not named again stays on. Without any, capture is what it would be had there never been one."""
    functions = "select proname, prosrc from pg_proc where proname ~ '^(capture|row|inside)_[0-9]' order by 1"
    scratch.execute(PEOPLE)
    mapped(scratch)
    bare = rows(scratch, functions)
    mapped(scratch, target='app."People"', rename={"email": "mail"}, mask={"email": "hash"}, filter="age > 1")
    with_mapping = rows(scratch, functions)
    assert len(with_mapping) == len(bare) + 1
    mapped(scratch)
    assert rows(scratch, functions) == with_mapping
    assert rows(scratch, "select target, rename, mask, filter from outbox.watched") == [
        ('app."People"', {"email": "mail"}, {"email": "hash"}, "age > 1")
    ]
    mapped(scratch, target="", rename={}, constant={}, mask={}, filter="")
    assert rows(scratch, functions) == bare
    assert rows(scratch, "select target, rename, mask, filter, mapping from outbox.watched") == [(None,) * 5]
    scratch.execute("select outbox.unwatch('person')")
    assert rows(scratch, functions) == []


ALTERED = {
    "masked, renamed": "alter table person rename email to mail",
    "masked, dropped": "alter table person drop email",
    "masked, renamed, and another has its name": "alter table person rename email to mail; alter table person rename phone to email",
    "masked, made anew": "alter table person rename email to mail; alter table person add email text",
    "left out, renamed": "alter table person rename note to remark",
    "in the filter, of another type": "alter table person alter age type numeric",
    "in the filter, renamed": "alter table person rename age to years",
    "renamed, renamed": 'alter table person rename "authorId" to author',
    "a new one under a name given away": "alter table person add user_id int",
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_table_is_marked_and_nothing_leaves_it(scratch: Connection, how: str) -> None:
    """What the mapping speaks of is not where it was: no statement fails, no value travels, and watch mends it."""
    scratch.execute(PEOPLE)
    mapped(
        scratch, exclude=["note"], rename={"authorId": "user_id"}, mask={"email": "hash"}, constant={"o": "p"}, filter="age > 1"
    )  # fmt: skip
    scratch.execute("insert into person values (1, 7, 'secret', '555', 'secret', 5)")
    assert ops(scratch) == ["upsert"]
    scratch.execute(ALTERED[how])
    scratch.execute("update person set phone = '1'" if "another" not in how else "update person set kind = 'x'")
    scratch.execute(
        "insert into person select 2, 7, 'secret', '555', 'secret'" if "dropped" not in how else "delete from person"
    )
    assert ops(scratch) == ["upsert", "resync", "resync"]
    assert "secret" not in str(rows(scratch, "select c::text from outbox.change c"))


def test_a_column_left_out_may_be_dropped(scratch: Connection) -> None:
    """There is nothing left to leave out; and a new column travels, unless only some were included."""
    scratch.execute(PEOPLE)
    mapped(scratch, exclude=["note", "authorId", "age", "deleted_at"], mask={"email": "redact"})
    scratch.execute(
        "alter table person drop note; alter table person add late text; insert into person (id, email, late) values (1, 'x', 'y')"
    )
    assert written(scratch)[0][2] == {"id": 1, "email": "***", "phone": None, "kind": "public", "late": "y"}
    mapped(scratch, include=["id", "email"])
    scratch.execute("alter table person add later text default 'z'; update person set later = 'y'")
    assert written(scratch)[1][2] == {"id": 1, "email": "***"}


def test_equal_values_have_equal_hashes(scratch: Connection) -> None:
    """Of one column, in every session, whatever it is set to; a number however many zeros it has. Of another column they differ."""
    scratch.execute(
        "create table v (id int primary key, n numeric, f float8, c char(5), b bpchar, t timestamptz, d date)"
    )
    watch(scratch, "v", mask=json.dumps(dict.fromkeys("nfcbtd", "hash")))
    scratch.execute("insert into v values (1, 1.50, 0.1, 'a', 'a  ', '2026-01-02 00:00+00', '2026-01-02')")
    scratch.execute(
        "set local datestyle = 'German'; set local timezone = 'Asia/Kathmandu'; set local extra_float_digits = -5"
    )
    scratch.execute(
        "insert into v values (2, 1.5000, 0.1, 'a  ', 'a', '2026-01-02 05:45+05:45', '02.01.2026'), (3, 2, 0, '', '', now(), now())"
    )
    one, two, three = ({**(row or {}), "id": 0} for _, _, row in written(scratch))
    assert one == two
    assert all(one[name] != three[name] and len(one[name]) == 64 for name in "nfcbtd")
    assert one["c"] == hashed(value(scratch, "select key from outbox.mask_key"), "public.v.c", "a")
    assert one["b"] == hashed(value(scratch, "select key from outbox.mask_key"), "public.v.b", "a")


def test_the_persons_own_key_is_used(scratch: Connection) -> None:
    """Inserted before it is first wanted."""
    scratch.execute("insert into outbox.mask_key (key) values ('twenty bytes of a key')")
    scratch.execute(PEOPLE)
    mapped(scratch, mask={"email": "hash"})
    scratch.execute("insert into person (id, email) values (1, 'a@b')")
    assert (written(scratch)[0][2] or {})["email"] == hashed(b"twenty bytes of a key", "public.person.email", "a@b")


NAMES = ["found", "way", "t", "x", "k", "f", "n", "place", 'quo"ted', "o'clock", "%s", "%1$I", "dotted.name", "$1", "$body$", "😀", "é" * 31, "--", "back\\slash",
         "select", "inside", "made", "tg_op", "captured", " "]  # fmt: skip


@pytest.mark.parametrize("strings", ["on", "off"])
def test_any_name_and_text_may_be_mapped(scratch: Connection, strings: str) -> None:
    """As a column, as a new name, as a constant and in a filter: copied, re-read and deleted."""
    quoted = ['"' + name.replace('"', '""') + '"' for name in NAMES]
    scratch.execute(
        ("create table person (id int primary key, " + ", ".join(f"{name} text" for name in quoted) + ")").encode()
    )
    scratch.execute(f"set local standard_conforming_strings = {strings}".encode())
    new = {name: f"{name[:20]}>" for name in NAMES[::2]}
    constants = {f"{name[:20]}<": name for name in NAMES}
    condition = " and ".join(f"{name} <> 'b\\'" for name in quoted)
    mapped(scratch, rename=new, constant=constants, mask=dict.fromkeys(NAMES[::3], "redact"), filter=condition)
    for number, letter in ((1, "b"), (2, "c")):
        scratch.execute(f"insert into person values ({number}{f', chr({ord(letter)})' * len(NAMES)})".encode())
    scratch.execute(f"update person set {quoted[0]} = $$b\\$$ where id = 1".encode())
    for statement in ("update person set id = 3 where id = 2", "delete from person"):
        scratch.execute(statement.encode())

    def values(letter: str) -> dict[str, str]:
        return {new.get(name, name): "***" if name in NAMES[::3] else letter for name in NAMES}

    assert written(scratch) == [
        ("upsert", '{"id":1}', {"id": 1, **values("b"), **constants}),
        ("upsert", '{"id":2}', {"id": 2, **values("c"), **constants}),
        ("delete", '{"id":1}', None),
        ("delete", '{"id":2}', None),
        ("upsert", '{"id":3}', {"id": 3, **values("c"), **constants}),
        ("delete", '{"id":3}', None),
    ]


def test_partitions_are_mapped_and_filtered_as_one_table(scratch: Connection) -> None:
    """A row that changes partitions, an insert into a partition itself, another order of columns there."""
    scratch.execute("""
        create table item (id int, region text, v text, primary key (id, region)) partition by list (region);
        create table item_eu (v text, region text not null, id int not null, primary key (id, region));
        alter table item attach partition item_eu for values in ('eu'); create table item_us partition of item for values in ('us')
    """)
    watch(scratch, "item", rename=json.dumps({"region": "r"}), mask=json.dumps({"v": "redact"}), filter="v <> 'out'")
    for statement in (
        "insert into item_eu (id, region, v) values (1, 'eu', 'a'), (2, 'eu', 'out')",
        "update item set region = 'us'",
        "update item_us set v = 'out' where id = 1",
        "update item set v = 'in'",
        "truncate item_us",
    ):
        scratch.execute(statement.encode())
    row = {"id": 1, "r": "eu", "v": "***"}
    assert written(scratch)[0] == ("upsert", '{"id":1,"r":"eu"}', row)
    assert_replays(scratch)
    assert ("upsert", '{"id":2,"r":"us"}', {"id": 2, "r": "us", "v": "***"}) in written(scratch)


def test_who_watches_needs_a_right_for_hashes_and_none_to_their_key(source: Database) -> None:
    """Another role than the schema's owner: told which, then capture runs as it, and the key stays the owner's."""
    role = f"watcher_{source.name}"
    with source.connect() as conn:
        conn.execute(
            f"""
            create role {role} login; grant all on schema public, outbox to {role}; grant select, insert, update on outbox.watched to {role};
            grant insert, select on outbox.change, outbox.shape to {role}; grant usage on all sequences in schema outbox to {role};
            grant execute on all functions in schema outbox to {role}; revoke execute on function outbox.hashed, outbox.make_mask_key from {role}
        """.encode()
        )
        try:
            with psycopg.connect(source.cluster.dsn(source.name, role), autocommit=True) as own:
                own.execute("create table person (id int primary key, email text)")
                with pytest.raises(
                    psycopg.errors.InvalidParameterValue, match=r"grant execute on function outbox\.hashed"
                ) as refused:
                    mapped(own, mask={"email": "hash"})
                conn.execute((refused.value.diag.message_primary or "").partition("right: ")[2].encode())
                mapped(own, mask={"email": "hash"}, filter="id > 0")
                own.execute("insert into person values (1, 'a@b'), (0, 'c@d')")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    own.execute("select * from outbox.mask_key")
            ((_, _, row),) = written(conn)
            assert len((row or {})["email"]) == 64
        finally:
            conn.execute(
                f"drop table if exists person cascade; drop owned by {role} cascade; drop role {role}".encode()
            )
