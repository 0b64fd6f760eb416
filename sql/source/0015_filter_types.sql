-- Filters: what they would make of a type in silence, because they see the operators and functions of pg_catalog alone. Knows the
-- stored tree of a filter as text, and must run nothing of it.

-- What is known of a node of a stored tree whose own nodes were so reduced: <type>, <type~from> of what is taken for another type
-- unsaid, and of which column (#n) it is made, where that is seen.
create or replace function outbox.reduced(node text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
declare
  rule text[];
begin
  foreach rule slice 1 in array array[
    ['^VAR :varno \d+ :varattno (\d+) :vartype (\d+) .*$', '<\2#\1>'],
    ['^\w+ :arg (<[\d~#]+>) :(?:collOid|name) .*$', '\1'],
    -- Unsaid: what was taken for another type before is so still.
    ['^\w+ :arg <(?:\d+~)?(\d+)(#\d+)?> .*:resulttype (\d+) .*:(?:relabel|coerce|coercion|convert)format 2 .*$', '<\3~\1\2>'],
    ['^FUNCEXPR .*:funcresulttype (\d+) .*:funcformat 2 .*:args \(<(?:\d+~)?(\d+)(#\d+)?>.*$', '<\1~\2\3>'],
    ['^\w+ :arg <[\d~]+(#\d+)?> .*:resulttype (\d+) .*$', '<\2\1>'],
    ['^\w+ [^#]*:(?:consttype|funcresulttype|opresulttype|refrestype|casetype|coalescetype|minmaxtype|array_typeid|typeId) (\d+)[^#]*(#\d+)?.*$', '<\1\2>']]
  loop
    if node ~ rule[1] then
      return regexp_replace(node, rule[1], rule[2]);
    end if;
  end loop;
  return '<0>';
end
$$;

-- Which type this node, an operator or a function, takes for another one unsaid, while it has a namesake for that very type (`=` of
-- citext), and the number of the column that it is made of, or 0. Of what else picks its way by types (coalesce, case, greatest) none
-- looks at the search path.
create or replace function outbox.misread(node text, out type oid, out made_of int)
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
begin
  select t.own, t.n into type, made_of
    from (select outbox.base_type(m[1]::oid), coalesce(m[2]::int, 0) from regexp_matches(node, '<\d+~(\d+)(?:#(\d+))?>', 'g') m) t(own, n)
    join pg_type p on p.oid = t.own
   cross join lateral (select array_agg(u.type) from (values (t.own), (case when p.typsubscript = 'array_subscript_handler'::regproc then outbox.base_type(p.typelem) end)) u(type)
                        where u.type::int8 >= 16384) k(own)
   where exists (select from outbox.operators_in(node) o join pg_operator x on x.oprname = o.oprname and x.oid <> o.oid
                  where x.oprleft = any (k.own) or x.oprright = any (k.own))
      or node ~ ' :funcformat 0 ' and exists (
           select from pg_proc f join pg_proc x on x.proname = f.proname and x.oid <> f.oid
            where f.oid = substring(node from ':funcid (\d+)')::oid and x.proargtypes::oid[] && k.own)
   order by t.n desc limit 1;
end
$$;

-- The first of these in a stored tree, from the innermost node to the outermost. It is read, never parsed again under another search
-- path: that could run the code of whoever made such a namesake.
create or replace function outbox.first_misread(tree text, out type oid, out made_of int)
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
declare
  -- Signs in names are escaped: they go first.
  quals text := substring(regexp_replace(tree, '\\.', '', 'g') from ' :quals (.*?) :(?:mergeActionList|targetList) ');
  open  text[] := '{""}';
  top   int := 1;
  piece text;
  parts text[];
  node  text;
begin
  if not exists (select from regexp_matches(quals, ':\w*type(?:id)? (\d+)', 'gi') m where m[1]::int8 between 16384 and 4294967295) then
    return;
  end if;
  foreach piece in array string_to_array(quals, '}') loop
    parts := string_to_array(piece, '{');
    open[top] := open[top] || coalesce(parts[1], '');
    for i in 2 .. cardinality(parts) loop
      top := top + 1;
      open[top] := parts[i];
    end loop;
    exit when top = 1;
    node := open[top];
    top := top - 1;
    open[top] := open[top] || outbox.reduced(node);
    if strpos(node, '~') > 0 then
      select * into type, made_of from outbox.misread(node);
      exit when type is not null;
    end if;
  end loop;
end
$$;

-- Why a filter with this stored tree is refused for what it makes of a value in silence, or null. Its operators and functions are
-- those of pg_catalog: a type that may be taken for another one and has its own (citext) would be compared otherwise than in a query.
create or replace function outbox.unfit_comparison(tbl regclass, tree text, whose name) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
begin
  return (
    select format('it reads %s as another type than %s, whose own operators and functions a filter does not see: say which one, as in  %s',
             case when fix.how is not null then format('column %I', c.name) when bad.made_of = 0 then 'a value' else format('a value made of column %I', c.name) end,
             one.type::regtype, coalesce(fix.how, format('lower(%I::text) = lower(''a'')', c.name)))
      from outbox.first_misread(tree) bad
      join pg_type b on b.oid = bad.type  -- none: no row
     cross join lateral (select case when b.typsubscript = 'array_subscript_handler'::regproc then outbox.base_type(b.typelem) else b.oid end) one(type)
      join outbox.filter_columns(tbl, whose) c on c.n = bad.made_of
           or bad.made_of = 0 and c.n in (select m[1]::int from regexp_matches(tree, '\{VAR :varno \d+ :varattno (\d+) ', 'g') m)
      join pg_type v on v.oid = c.of_type
      left join pg_type e on e.oid = v.typelem
      left join lateral (select a.attname from pg_attribute a
                          where a.attrelid in (v.typrelid, e.typrelid) and a.attrelid <> 0 and outbox.base_type(a.atttypid) = one.type order by a.attnum limit 1) field on true
     cross join lateral (select case when c.of_type = one.type then format('lower(%I::text) = lower(''a'')', c.name)
                                     when c.of_type = bad.type then format('lower(''a'') = any (lower(%I::text)::text[])', c.name)
                                     when outbox.base_type(e.oid) = one.type then format('lower((%I[1])::text) = lower(''a'')', c.name)
                                     when field.attname is not null then format('lower((%I%s).%I::text) = lower(''a'')', c.name, case when e.oid is not null then '[1]' end, field.attname) end) fix(how)
     order by fix.how is null, c.n limit 1);
end
$$;

revoke all on all functions in schema outbox from public;
