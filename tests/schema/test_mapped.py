"""Tables that arrive under other names, with columns renamed, left out, fixed or masked."""

import pytest

from tests.schemas import Schemas


@pytest.fixture
def mapped(schemas: Schemas) -> Schemas:
    with schemas.source.connect() as conn:
        known = conn.execute(
            "select count(*) from pg_attribute where attrelid = 'outbox.watched'::regclass and attname = 'mask'"
        ).fetchone()
    if known == (0,):
        pytest.skip("the source's side maps nothing yet")
    schemas.on_source(
        "create table parent (id int primary key, code text unique not null, secret varchar(10) not null, card int not null, gone text)",
        'create table child (id int primary key, "parentId" int not null references parent, email text not null unique, draft text, "userId" uuid)',
        "create index on child (draft); create index on child (\"userId\" desc); create index on child (lower(email))",
        """select outbox.watch('parent', exclude => array['gone'], target => 'app.parents', mask => '{"secret": "redact", "card": "redact"}')""",
        """select outbox.watch('child', exclude => array['draft'], target => 'app.children', rename => '{"parentId": "parent_id", "userId": "user_id"}',
             constant => '{"origin": "main"}', mask => '{"email": "hash"}')""",
    )  # fmt: skip
    schemas.say("public.child", owner="user_id")
    return schemas


async def test_what_arrives_is_what_is_made(mapped: Schemas) -> None:
    """Names, types and what may be null are those of the rows that come; indexes, keys and policies follow."""
    mapped.settle()
    assert mapped.columns("app.parents") == {
        "id": "integer not null", "code": "text not null", "secret": "character varying(10) not null", "card": "integer",
    }  # fmt: skip
    assert mapped.columns("app.children") == {
        "id": "integer not null", "parent_id": "integer not null", "email": "text not null", "user_id": "uuid", "origin": "text not null",
    }  # fmt: skip
    assert mapped.ask(
        "select json_agg(confrelid::regclass::text) from pg_constraint where conrelid = 'app.children'::regclass and contype = 'f'"
    ) == ["app.parents"]
    assert (
        mapped.ask("select count(*) from pg_constraint where conrelid = 'app.children'::regclass and contype = 'u'")
        == 1
    )
    assert (
        mapped.ask("select target_schema || '.' || target_table from outboxd.mirror where table_name = 'public.child'")
        == "app.children"
    )
    assert [note.split(":")[1] for note in mapped.look().notes] == [" no index like child_lower_idx"]
    mapped.on_source(
        "insert into parent values (1, 'a', 'secret', 5, 'x')",
        "insert into child values (1, 1, 'a@b', 'x', gen_random_uuid())",
    )
    await mapped.pair.drain()
    assert mapped.ask("select row(p.*)::text from app.parents p") == "(1,a,***,)"
    assert mapped.ask("select row(parent_id, origin, length(email))::text from app.children") == "(1,main,64)"
    assert mapped.look().steps == ()


def test_a_filter_on_the_parent_leaves_no_foreign_key(mapped: Schemas) -> None:
    """Children of a parent that does not travel would be refused."""
    mapped.on_source("select outbox.watch('parent', filter => 'id < 5')")
    found = mapped.look()
    assert "foreign_key" not in {step.kind for step in found.steps}
    assert (
        "public.child: no foreign key like child_parentId_fkey: of public.parent only some rows travel" in found.notes
    )
    mapped.settle()
