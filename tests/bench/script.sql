-- What people write by hand: a row trigger (each table gets one), and a table that says what is still to be sent.

create table to_send (
  id           bigint generated always as identity primary key,
  table_name   text not null,
  op           text not null,
  row          jsonb not null,
  created_at   timestamptz not null default now(),
  processed_at timestamptz
);

create index to_send_waiting on to_send (id) where processed_at is null;

create function note_change() returns trigger language plpgsql as $$
begin
  insert into to_send (table_name, op, row) values (tg_table_name, tg_op, to_jsonb(coalesce(new, old)));
  return null;
end
$$;
