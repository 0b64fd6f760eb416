"""Steps for who may see a mirror's rows: row level security, grants and our own policies.

Pure. A person's own policies are never touched.
"""

from collections.abc import Iterator

from daemon import schema_ddl as ddl
from daemon.audience import grants, names_a_user, policies, same
from daemon.schema_steps import OURS, Mirror, Step
from daemon.structure import Policy


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
