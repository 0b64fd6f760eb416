"""Who may see a mirror's rows: grants and policies.

Pure. Knows Supabase's roles and `auth.uid()`, and how Postgres spells a policy when it is asked for it.
"""

import re

from daemon import schema_ddl as ddl
from daemon.errors import SchemaUnfit
from daemon.structure import WRITES, Audience, Column, Place, Policy
from daemon.wanted import Wanted

_TEXTS = {"text", "character varying", "character", "bpchar"}


def grants(audience: Audience, place: Place) -> dict[str, tuple[str, ...]]:
    """What each role of the project needs. The relay itself needs none (decision 8)."""
    wanted: dict[str, tuple[str, ...]] = {"service_role": ("select", *WRITES)}
    if audience.access == "public_read":
        wanted["anon"] = ("select",)
    if audience.access != "none":
        wanted["authenticated"] = ("select", *WRITES) if audience.write else ("select",)
    return {role: privileges for role, privileges in wanted.items() if role in place.roles}


def policies(one: Wanted, columns: tuple[Column, ...], place: Place) -> tuple[Policy, ...]:
    """Row level security of this mirror. `auth.uid()` stands in a SELECT, so that it is asked once a query."""
    audience = one.audience
    made = []
    if audience.access == "public_read":
        made.append(Policy("outboxd_select", "select", ("anon", "authenticated"), using="true"))
    if audience.access == "none" or audience.owner is None:
        return tuple(made)
    mine = _mine(one, audience.owner, columns, place)
    if audience.access == "owner":
        made.append(Policy("outboxd_select", "select", ("authenticated",), using=mine))
    if audience.write:
        made += [
            Policy("outboxd_insert", "insert", ("authenticated",), check=mine),
            Policy("outboxd_update", "update", ("authenticated",), using=mine, check=mine),
            Policy("outboxd_delete", "delete", ("authenticated",), using=mine),
        ]
    return tuple(made)


def names_a_user(column: Column) -> bool:
    """Can this column say whose row it is?"""
    return column.type.base == "uuid" or column.type.base in _TEXTS


def _mine(one: Wanted, owner: str, columns: tuple[Column, ...], place: Place) -> str:
    where = f'tables."{one.watched.name}".owner'
    column = next((column for column in columns if column.name == owner), None)
    if column is None:
        names = ", ".join(each.name for each in one.table.columns)
        raise SchemaUnfit(
            f"{where} names {owner}, which is no column of {ddl.ident(*one.name)} on the target: it has {names}"
        )
    if not ddl.seen(owner):
        raise SchemaUnfit(f"{where}: the column's name has characters that cannot be seen: give it another with rename")
    if not place.has_uid:
        raise SchemaUnfit(
            f"{where}: the target has no function auth.uid(), which says who asks: is it a Supabase project?"
        )
    spelled, base = column.type.spelled, column.type.base
    if not names_a_user(column):
        raise SchemaUnfit(
            f"{where}: {owner} is {spelled}, and users are told apart by a uuid: name a column of type uuid or text"
        )
    user = "(select auth.uid())" if base == "uuid" else "(select auth.uid())::text"
    cast = "" if spelled in {"uuid", "text"} else "::uuid" if base == "uuid" else "::text"
    return f"{user} = {ddl.ident(owner)}{cast}"


def same(wanted: Policy, there: Policy | None) -> bool:
    """Is this the policy that is there? Postgres puts brackets and aliases of its own into expressions."""
    return there is not None and (
        (wanted.command, sorted(wanted.roles), _plain(wanted.using), _plain(wanted.check))
        == (there.command, sorted(there.roles), _plain(there.using), _plain(there.check))
    )


def _plain(expression: str | None) -> str | None:
    if expression is None:
        return None
    return re.sub(r'[\s()"]', "", expression).lower().replace("auth.uidasuid", "auth.uid")
