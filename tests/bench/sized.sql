-- Rows of a size: text that no compression makes much smaller, as names and prose are not.

create table "Sized" ("id" bigint primary key, "body" text not null);

create sequence bench.sized_id;

create procedure bench.sized(n int, size int) language plpgsql as $$
declare
  pool text := (select string_agg(encode(sha256(k::text::bytea), 'base64'), '') from generate_series(1, 500) k);
begin
  for i in 1 .. n loop
    insert into "Sized" values (nextval('bench.sized_id'), substr(pool, 1 + i % 5000, size));
    commit;
  end loop;
end
$$;
