"""Each kind of step, done for real; and after it there is nothing left to do."""

import pytest

from tests.schemas import Schemas


def test_a_missing_table(schemas: Schemas) -> None:
    """Columns, types, constant defaults, the key; what is computed on the source is a plain column here."""
    schemas.on_source(
        "create type mood as enum ('calm', 'wild')",
        """create table story (
             id bigint generated always as identity primary key, title varchar(40) not null default 'untitled',
             mood mood default 'calm', tags text[] default '{}', doc jsonb not null default '{}', price numeric(10, 2) default -1.5,
             shout text generated always as (upper(title)) stored, made timestamptz(3) not null default now(),
             token uuid default gen_random_uuid(), "Serial" serial, code text collate "C")""",
        "comment on table story is 'what is told'; comment on column story.title is 'it''s a title'",
    )
    schemas.watch("story")
    kinds = schemas.kinds()
    assert kinds == ["type", "table", "grant", "comment", "comment", "map"]
    assert len(schemas.settle()) == len(kinds)
    assert schemas.columns("story") == {
        "id": "bigint not null", "title": "character varying(40) not null", "mood": "mood", "tags": "text[]", "doc": "jsonb not null",
        "price": "numeric(10,2)", "shout": "text", "made": "timestamp(3) with time zone not null", "token": "uuid",
        "Serial": "integer not null", "code": "text",
    }  # fmt: skip
    defaults = schemas.ask(
        "select json_object_agg(a.attname, pg_get_expr(d.adbin, d.adrelid)) from pg_attrdef d"
        " join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum where d.adrelid = 'story'::regclass"
    )
    assert set(defaults) == {"title", "mood", "tags", "doc", "price"}
    assert (
        schemas.ask(
            "select count(*) from pg_attribute where attrelid = 'story'::regclass and attidentity || attgenerated <> ''"
        )
        == 0
    )
    assert schemas.ask("select relrowsecurity from pg_class where oid = 'story'::regclass")
    assert schemas.ask("select obj_description('story'::regclass)") == "what is told"
    assert schemas.ask("select col_description('story'::regclass, 2)") == "it's a title"
    assert (
        schemas.ask(
            "select collname from pg_attribute a join pg_collation l on l.oid = attcollation where attrelid = 'story'::regclass and attname = 'code'"
        )
        == "C"
    )
