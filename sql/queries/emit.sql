-- Several changes at once, in the order given.
select outbox.emit(table_name, op, "values"::json, null::json, headers::json)
  from unnest(%s::text[], %s::text[], %s::text[], %s::text[]) with ordinality g(table_name, op, "values", headers, n)
 order by n
