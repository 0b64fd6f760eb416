-- Optional: a role for the daemon with just the rights it needs. Roles belong to the whole server, so this
-- is no migration; run it as a role that may create roles, then give it a password:
--   alter role outboxd password '...';

do $$
begin
  if not exists (select from pg_roles where rolname = 'outboxd') then
    create role outboxd login nosuperuser nocreatedb nocreaterole;
  end if;
end
$$;

-- What it was given besides is taken back: a default privilege, an older version, somebody in a hurry.
do $$
declare
  given record;
begin
  for given in select g.kind, g.object from outbox.grants() g where g.grantee = 'outboxd' and pg_has_role(g.owner, 'usage') loop
    execute format('revoke all on %s %s from outboxd cascade', given.kind, given.object);
  end loop;
end
$$;

grant usage on schema outbox to outboxd;
grant select on all tables in schema outbox to outboxd;
revoke all on outbox.mask_key from outboxd;
grant select on all sequences in schema outbox to outboxd;
grant execute on function outbox.signature(regclass), outbox.primary_key(regclass), outbox.row_columns(regclass, text[], text[]),
  outbox.unfit(regclass, text[], text[], text[], name), outbox.draws(regclass), outbox.is_key(regclass, text[]), outbox.column_names(regclass),
  outbox.base_type(oid), outbox.projected(text[], jsonb), outbox.projected_columns(regclass, text[], text[], jsonb),
  outbox.mapping_holds(regclass, text[], text[], jsonb), outbox.read_types(regclass, jsonb, name), outbox.handed(oid, name), outbox.collated(oid, text, boolean, name), outbox.is_trusted(oid, name), outbox.types_within(oid), outbox.functions_of(int), outbox.own_functions(outbox.watched), outbox.watcher_of(outbox.watched), outbox.table_named(text), outbox.word(text),
  outbox.still_left_out(regclass, text[], jsonb), outbox.asleep(outbox.watched), outbox.uncaptured(), outbox.masked_sql(text, text, oid, int, text), outbox.foreign_grants(), outbox.grants(), outbox.watcher_needs(text, text, regprocedure), outbox.prune(bigint, interval) to outboxd;
grant insert, update, delete on outbox.held to outboxd;
grant update on outbox.leadership to outboxd;
grant execute on function outbox.lead(), outbox.may_lead(oid), outbox.strangers(), outbox.session_named(int, text) to outboxd;
grant execute on function outbox.copy_of(text, text, text[], int, bigint, bigint), outbox.ask_copy(text, boolean, boolean), outbox.ask_verification(text, boolean),
  outbox.notice(text), outbox.fit_of(text[]), outbox.known(text), outbox.aims(text[]), outbox.identities(text[]), outbox.left_home(outbox.watched),
  outbox.tree(regclass) to outboxd;
grant execute on function outbox.ring(), outbox.knock(text), outbox.confirm(text, bigint, bigint, text, text), outbox.still_leads(text, bigint), outbox.heartbeat(text, bigint, text),
  outbox.look(bigint, xid8[], xid8[], bigint, int, bigint, bigint) to outboxd;
