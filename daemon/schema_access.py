"""Steps for who may see a mirror's rows: row level security, grants and our own policies.

Pure. A person's own policies are never touched. Knows what an audience may do that its policies do not tell.
"""

from collections.abc import Iterator

from daemon import schema_ddl as ddl
from daemon.audience import grants, names_a_user, policies, same
from daemon.schema_steps import OURS, Mirror, Step
from daemon.structure import Policy, Table
from daemon.wanted import Wanted


def _policies(mirror: Mirror) -> tuple[Policy, ...]:
    """For the columns as they are now; none while the owner's column has yet to change its type."""
    there = {column.name: column for column in mirror.there.columns}
    now = tuple(there.get(column.name, column) for column in mirror.one.table.columns)
    own = (*now, *(column for column in mirror.there.columns if mirror.one.table.column(column.name) is None))
    owner = there.get(mirror.one.audience.owner or "")
    if owner is not None and not names_a_user(owner) and mirror.one.table.column(owner.name) is not None:
        policies(mirror.one, mirror.one.table.columns, mirror.target.place)  # it will be one, or this raises
        return ()
    return policies(mirror.one, own, mirror.target.place)


def access_steps(mirror: Mirror) -> Iterator[Step]:
    name, place = mirror.name, mirror.target.place
    if not mirror.there.secured:
        yield mirror.step(
            "security",
            name[1],
            ddl.enable_security(name),
            "without row level security whoever holds a grant sees every row",
        )
    audience = mirror.one.audience
    changed = f"what the source has on record of it: {audience.instead}" if audience.instead else ""
    for role, wanted in sorted(grants(audience, place).items()):
        missing = [privilege for privilege in wanted if (role, privilege) not in mirror.there.grants]
        if missing:
            reason = f"projects grant nothing by themselves, {role} has to be told"
            lost = changed if role != "service_role" else ""
            yield mirror.step("grant", role, ddl.grant(name, missing, role), reason, lost)
    there = {policy.name: policy for policy in mirror.there.policies}
    wanted_policies = _policies(mirror)
    for policy in wanted_policies:
        before = there.get(policy.name)
        if not same(policy, before):
            lost = f"what it lets now: {_lets(before)}" if before is not None else changed
            made = ddl.create_policy(name, policy)
            yield mirror.step("policy", policy.name, made, audience.said, lost)
    for policy_name in sorted(there.keys() - {policy.name for policy in wanted_policies}):
        if policy_name.startswith(OURS):
            lost = f"what it lets now: {_lets(there[policy_name])}"
            dropped = ddl.drop_policy(name, policy_name)
            yield mirror.step("policy", policy_name, dropped, f"{audience.said}: no longer wanted", lost)


def _lets(policy: Policy) -> str:
    rows = f"rows where {policy.using or policy.check}"
    return f"{', '.join(policy.roles)} may {policy.command} {rows}"


def audience_notes(one: Wanted, there: Table | None) -> Iterator[str]:
    """What policies do not keep from users: constraints look at all rows, and Realtime tells of deletes without asking.
    `there`: the mirror as it is, which may have constraints of its own."""
    name, owner = one.watched.name, one.audience.owner
    if one.audience.write:
        indexes = (one.key, *one.table.indexes, *(there.indexes if there else ()))
        # One with the owner in it holds nobody else's values; of a key that is there the row becomes the source's.
        unique = [
            each.name
            for each in indexes
            if each.unique and owner not in each.columns and not _unguessed(one, each.columns)
        ]
        references = (*one.references, *(there.references if there else ()))
        foreign = [each.name for each in references if each.child == one.name]
        found = [("unique", unique), ("foreign key", foreign)]
        if names := [f"{kind} {', '.join(dict.fromkeys(each))}" for kind, each in found if each]:
            yield (
                f"{name}: write = true lets users write rows, which constraints compare with rows that they may not see: by "
                f"{' and '.join(names)} they learn of those, keep rows of the source out (dead letters), or hold its deletes up"
            )
    if one.audience.realtime and one.audience.access != "public_read":
        key = ", ".join(column for column in one.key.columns if column)
        yield f"{name}: realtime = true tells of a deleted row's key ({key}) whoever subscribes: Realtime asks no policy about deletes"


def _unguessed(one: Wanted, columns: tuple[str | None, ...]) -> bool:
    """Is it the key, and a value that nobody guesses?"""
    types = [column.type.base for column in one.table.columns if column.name in columns]
    return set(columns) == set(one.key.columns) and "uuid" in types
