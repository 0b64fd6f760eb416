"""A target that counts what is written to it, so that an effect which happened twice is seen."""

from collections import Counter

from tests.acceptance.conftest import Pair

Effects = Counter[tuple[str, str]]

# One row for every row that is written on the target, however it is written.
_COUNT_WRITES = """
create table writes (table_name text, id text);
create function count_write() returns trigger language plpgsql as $$
begin insert into public.writes values (format('%I.%I', tg_table_schema, tg_table_name), new.id::text); return null; end $$;
create trigger count_write after insert or update on "Story" for each row execute function count_write();
create trigger count_write after insert or update on "Scenario" for each row execute function count_write();
create trigger count_write after insert or update on "Prompt" for each row execute function count_write();
create trigger count_write after insert or update on "VideoAsset" for each row execute function count_write();
"""
_WRITES = "select table_name, id, count(*) from writes group by 1, 2"
_CHANGES = "select table_name, key::json ->> 'id', count(*) from outbox.change where op = 'upsert' group by 1, 2"


def count_writes(pair: Pair) -> Pair:
    """From now on the target counts."""
    with pair.target.connect() as conn:
        conn.execute(_COUNT_WRITES)
    return pair


def effects(pair: Pair) -> tuple[Effects, Effects]:
    """By table and key: how often the source recorded an upsert, how often the target wrote."""
    recorded = {(table, key): count for table, key, count in pair.ask(pair.source, _CHANGES)}
    written = {(table, key): count for table, key, count in pair.ask(pair.target, _WRITES)}
    return Counter(recorded), Counter(written)
