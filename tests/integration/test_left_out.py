"""A table that is out is counted, and so is what of it is not sent."""

from prometheus_client.parser import text_string_to_metric_families

from daemon.metrics import Metrics
from daemon.report import Observed
from tests.pairs import Pair

TABLES = "create table story (id int primary key, title text); create table item (id int primary key)"


def value(metrics: Metrics, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(metrics.render()[0].decode())
    samples = [one for family in families for one in family.samples if one.name == f"outboxd_{name}"]
    return sum(one.value for one in samples if one.labels.items() >= labels.items())


async def test_changes_of_a_table_that_is_out_are_counted_apart(pair: Pair) -> None:
    """They are settled and not applied; the others' are applied; once it is copied again nothing is left out any more."""
    pair.create(TABLES, "story", "item")
    metrics = Metrics()
    async with pair.relay(observer=Observed(metrics)) as parts:
        pair.write("insert into story values (1, 'a')", "insert into item values (1)")
        await parts.relay.drain()
        assert value(metrics, "changes_skipped_total", reason="out") == 0
        assert value(metrics, "changes_applied_total") == 2
        with pair.target.connect() as conn:
            conn.execute("alter table story drop column title")
        pair.write("insert into story values (2, 'b')", "insert into item values (2)")
        await parts.relay.drain()
        pair.write("insert into story values (3, 'c'), (4, 'd')", "insert into item values (3)")
        await parts.relay.drain()
        assert value(metrics, "changes_skipped_total", reason="out") == 3
        assert value(metrics, "changes_applied_total") == 4
        assert value(metrics, "changes_read_total") >= 7
