
-- Each row a transaction, in one table after the other; {number} of them.
create sequence bench.many_id;

create procedure bench.many(n int) language plpgsql as $$
declare
  part text := repeat('a row of a table among many, ', 10);
begin
  for i in 1 .. n loop
    execute format('insert into %I values ($1, $2)', 'many_' || 1 + i % {number}) using nextval('bench.many_id'), part;
    commit;
  end loop;
end
$$;
