-- Filters: which rows of a watched table travel, as a function outbox.inside_<id> that capture and copies ask for each row.
--
-- It runs as whoever watches, and its text is read anew in each session. So no name in it, and nothing that a name is
-- resolved by (casts, overloads), may be another's: who owned a type, a function or its schema could put anything in its place,
-- and that would run with the watcher's rights. A column whose type belongs to another is handed over as its text, or not at all.
--
-- A parameter of plpgsql has no collation of its own, but that of the call, which all arguments choose together. Where columns have
-- different ones the function says each column's itself; else that of the call follows the table's.

-- How a filter's function is given a column of this type, and as what:
--   plain    as it is, without its domains
--   own      as it is, by its type's number alone: a superuser's type in another's schema
--   read     as its text, which the function reads again: the function must not stand in the way of whoever replaces the
--            type. Not where a domain is inside: to read such a text is to run its checks
--   label    an enum of another's: as its text; labels: an array of one
--   null     not at all
create or replace function outbox.handed(of_type oid, whose name, out way text, out type text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  base oid := outbox.base_type(of_type);
  t    pg_type;
begin
  select * into t from pg_type p where p.oid = base;
  type := format_type(base, -1);
  if base::int8 < 16384 then
    way := 'plain';
  elsif not exists (select from outbox.types_within(base) w(type) left join pg_type p on p.oid = w.type left join pg_namespace n on n.oid = p.typnamespace
                     where w.type::int8 >= 16384 and (outbox.is_trusted(p.typowner, whose) and outbox.is_trusted(n.nspowner, whose)) is not true) then
    way := case when exists (select from outbox.types_within(base) w(type) join pg_type p on p.oid = w.type where p.typtype = 'd') then 'plain' else 'read' end;
  elsif of_type <> base then
    type := 'text';
  elsif t.typtype = 'b' and t.typsubscript <> 'array_subscript_handler'::regproc and outbox.is_trusted(t.typowner, whose) then
    way := 'own';
  elsif t.typtype = 'e' then
    way := 'label';
    type := 'text';
  elsif t.typsubscript = 'array_subscript_handler'::regproc and (select e.typtype = 'e' from pg_type e where e.oid = t.typelem) then
    way := 'labels';
    type := 'text[]';
  else
    type := 'text';
  end if;
end
$$;

-- By which collation a column is compared that is handed over so, as SQL: its own, or the database's, as that of its text. `named`: as
-- the filter's function says it; it names none of another role's, and no fit filter compares by one.
create or replace function outbox.collated(by oid, way text, named boolean, whose name) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
begin
  if by = 0 and way in ('plain', 'own', 'read') then
    return '';
  end if;
  return coalesce((select format(' collate %I.%I', n.nspname, c.collname) from pg_collation c join pg_namespace n on n.oid = c.collnamespace
                    where c.oid = by and way in ('plain', 'own', 'read')
                      and (not named or outbox.is_trusted(c.collowner, whose) and outbox.is_trusted(n.nspowner, whose))), ' collate pg_catalog."default"');
end
$$;

-- The columns of a table as a filter of this role's sees them, in their order.
create or replace function outbox.filter_columns(tbl regclass, whose name)
returns table (n bigint, name text, of_type oid, way text, type text, collation oid)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select row_number() over (order by a.attnum), a.attname::text, outbox.base_type(a.atttypid), h.way, h.type, a.attcollation
      from pg_attribute a cross join lateral outbox.handed(a.atttypid, whose) h
     where a.attrelid = tbl and a.attnum > 0 and not a.attisdropped
     order by 1;
end
$$;

-- How these columns are handed to the filter's function, and compared there, as the mapping keeps it.
create or replace function outbox.read_types(tbl regclass, needs jsonb, whose name) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    with read as (
      select a.attname, a.attcollation, h.*, min(nullif(k.by, 0)) over () <> max(nullif(k.by, 0)) over () or bool_or(h.way = 'read' and k.by <> 0) over () as mixed
        from pg_attribute a cross join lateral outbox.handed(a.atttypid, whose) h
       cross join lateral (select case when h.way in ('plain', 'own', 'read') then a.attcollation else 'default'::regcollation end) k(by)
       where a.attrelid = tbl and a.attnum > 0 and needs ? a.attname)
    select jsonb_object_agg(r.attname, jsonb_build_array(r.way, r.type, case when r.mixed then outbox.collated(r.attcollation, r.way, true, whose) else '' end)) from read r);
end
$$;

-- Is this enum still the one whose labels were `known`, and has it `given`? A label that was renamed passes the filter by another
-- name; one that is not seen here was.
create or replace function outbox.has_labels(of_type oid, given text[], known text[]) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select array_agg(e.enumlabel::text) from pg_enum e where e.enumtypid = of_type) @> (array_remove(given, null) || known);
end
$$;

-- SQL that says whether row t passes the filter: true, false, or null when the filter fails for it, or nobody can say.
create or replace function outbox.inside_sql(mapping jsonb, alias text default 't') returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  call  text;
  sound text;
begin
  select format('%s(%s)', mapping ->> 'inside', string_agg(format(case
           when mapping -> 'texts' ? n.name then 'case when %1$I.%2$I is distinct from null then concat(%1$I.%2$I) end'
           when mapping -> 'types' -> n.name ->> 0 = 'own' then '%I.%I'
           else '(%I.%I)::%s' end, alias, n.name, mapping -> 'types' -> n.name ->> 1), ', ' order by n.n))
    into call from jsonb_array_elements_text(mapping -> 'needs') with ordinality n(name, n);
  select string_agg(format(case
           when mapping -> 'types' -> l.name ->> 0 = 'label'
           then '(%1$I.%2$I is null or concat(%1$I.%2$I) = any (%3$L::text[]) or outbox.has_labels(pg_typeof(%1$I.%2$I)::oid, array[concat(%1$I.%2$I)], %3$L::text[]))'
           else '(%1$I.%2$I is null or concat(%1$I.%2$I)::text[] <@ %3$L::text[] or outbox.has_labels(pg_typeof(%1$I.%2$I[1])::oid, concat(%1$I.%2$I)::text[], %3$L::text[]))' end,
           alias, l.name, array(select jsonb_array_elements_text(l.known))), ' and ' order by l.name collate "C")
    into sound from jsonb_each(mapping -> 'labels') l(name, known);
  return case when sound is null then call else format('case when %s then %s end', sound, call) end;
end
$$;

-- Does the filter with this stored tree answer for ever what it once answered for a row? Only where all it calls is
-- immutable, and of the system: what users made may be replaced. Words like 'now' are read once in each session. Where
-- nobody can tell, it does not: then deletes are recorded that need not be.
create or replace function outbox.is_lasting(filter text, tree text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
begin
  return not exists (select from outbox.called_by(tree) f where f.provolatile <> 'i' or f.oid::int8 >= 16384)
     and tree !~ '\{(SQLVALUEFUNCTION|NEXTVALUEEXPR|COERCEVIAIO|COERCETODOMAIN|XMLEXPR|JSON)'
     and not (regexp_replace(filter, '''\s*''', '', 'g') ~* '\y(now|today|tomorrow|yesterday)\y|\\'
              and exists (select from regexp_matches(tree, ':consttype (\d+)', 'g') m
                           where m[1]::oid <> all ('{bool,int2,int4,int8,numeric,text,varchar,bpchar,uuid}'::regtype[])));
end
$$;

-- The operators of an expression with this stored tree.
create or replace function outbox.operators_in(tree text) returns setof pg_operator
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
begin
  return query
    select o.* from pg_operator o
     where o.oid in (select unnest(string_to_array(trim(m[1]), ' ')::oid[]) from regexp_matches(tree, ':opnos? (?:\(o )?([\d ]+)', 'g') m);
end
$$;

-- The functions that it calls, by name or in operators.
create or replace function outbox.called_by(tree text) returns setof pg_proc
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
begin
  return query
    select f.* from pg_proc f
     where f.oid in (select m[1]::oid from regexp_matches(tree, ':(?:func|opfunc)id (\d+)', 'g') m
                     union select o.oprcode from outbox.operators_in(tree) o);
end
$$;

-- What an expression with this stored tree is made of that is not the system's, nor safe in a text that runs as `whose`: it can be
-- replaced by another, or another of its name would be taken for it. One of them, or null.
create or replace function outbox.foreign_code(tree text, whose name) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
begin
  return (
    select case when not outbox.is_trusted(u.owner, whose) then format('%s, which %s owns', u.what, u.owner::regrole)
                when not outbox.is_trusted(n.nspowner, whose) then format('%s, whose schema %s owns', u.what, n.nspowner::regrole)
                else format('%s, in whose schema %s may create another', u.what, coalesce(nullif(c.grantee, 0)::regrole::text, 'everybody')) end
      from (select f.oid, f.oid::regprocedure::text as what, f.proowner as owner, f.pronamespace as place, true as by_name from outbox.called_by(tree) f
            union all select o.oid, o.oid::regoperator::text, o.oprowner, o.oprnamespace, true from outbox.operators_in(tree) o
            union all select w.type, w.type::regtype::text, t.typowner, t.typnamespace, false
              from (select distinct m[1]::oid as type from regexp_matches(tree, ':\w*type(?:id)? (\d+)', 'g') m where m[1]::int8 between 16384 and 4294967295) k
             cross join lateral outbox.types_within(k.type) w(type) join pg_type t on t.oid = w.type) u(oid, what, owner, place, by_name)
      join pg_namespace n on n.oid = u.place
      left join lateral (select a.grantee from aclexplode(n.nspacl) a
                          where u.by_name and a.privilege_type = 'CREATE' and not outbox.is_trusted(a.grantee, whose) limit 1) c on true
     where u.oid::int8 >= 16384
       and (not outbox.is_trusted(u.owner, whose) or not outbox.is_trusted(n.nspowner, whose) or c.grantee is not null)
     order by u.what limit 1);
end
$$;

-- The stored tree of a filter over columns that are made of nothing (`columns`: SQL), as Postgres understands it. Nothing is run.
create or replace function outbox.filter_tree(columns text, title text, filter text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  base  text := 'outbox.probe_' || replace(gen_random_uuid()::text, '-', '');
  probe text := replace(base, 'probe_', 'probed_');
  one   refcursor;
  tree  text;
begin
  execute format('create view %s as select %s', base, columns);
  open one for execute format(E'select from %s %s where (false and (%s\n))', base, title, filter);  -- is it one statement?
  close one;
  -- A view, because its stored tree tells all that the expression is made of; the newline ends a comment.
  execute format(E'create view %s as select 1 as one from %s %s where (%s\n)', probe, base, title, filter);
  select r.ev_action into tree from pg_rewrite r where r.ev_class = probe::regclass;
  execute format('drop view %s, %s', probe, base);
  return tree;
end
$$;

-- Why a filter with this stored tree is refused, or null.
create or replace function outbox.unfit_filter(tree text, whose name) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
declare
  bad text;
begin
  if tree ~ '\{SUBLINK ' then
    return 'it has a subquery, and other tables change without this one noticing';
  elsif tree ~ '\{VAR :varno \d+ :varattno 0 ' then
    return 'it takes the row as a whole: name its columns';
  end if;
  select string_agg(distinct f.oid::regprocedure::text, ', ') into bad from outbox.called_by(tree) f where f.provolatile = 'v';
  if bad is not null then
    return format('it calls %s, which may answer otherwise each time', bad);
  end if;
  -- Not those of columns by which nothing is compared.
  select string_agg(distinct format('%s, which %s owns', c.oid::regcollation, c.collowner::regrole), ', ') into bad
    from regexp_matches(tree, ':(?!varcollid )\w*coll\w* (?:\(o )?([\d ]+)', 'g') m cross join lateral unnest(string_to_array(trim(m[1]), ' ')) k(id)
    join pg_collation c on c.oid = k.id::oid join pg_namespace n on n.oid = c.collnamespace
   where not outbox.is_trusted(c.collowner, whose) or not outbox.is_trusted(n.nspowner, whose);
  if bad is not null then
    return format('it compares by the collation %s: name one of the system''s, as in  kind collate "C" = ''new'', or watch as its owner', bad);
  end if;
  bad := outbox.foreign_code(tree, whose);
  if bad is not null then
    return format('it uses %s: whatever takes its place would run as %I. Leave it out, or watch as its owner', bad, whose);
  end if;
  return null;
end
$$;

-- Which of the columns that a filter reads it cannot read as `whose`, and why, or null. `compared`: its tree over the enums themselves,
-- where it has such columns.
create or replace function outbox.unfit_columns(tbl regclass, needs text[], compared text, whose name) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
declare
  bad text;
begin
  select format('column %I is of type %s, which %s owns, and whatever that one makes of it would run as %I: leave the column out, or watch as %3$s',
                c.name, c.of_type::regtype, t.typowner::regrole, whose) into bad
    from outbox.filter_columns(tbl, whose) c join pg_type t on t.oid = c.of_type where c.name = any (needs) and c.way is null order by c.n limit 1;
  if bad is null and (compared ~ '\{MINMAX' or exists (
       select from outbox.called_by(compared) f where f.pronamespace = 'pg_catalog'::regnamespace and f.proname = any (
         '{enum_lt,enum_le,enum_gt,enum_ge,enum_cmp,enum_larger,enum_smaller,enum_first,enum_last,enum_range,array_lt,array_le,array_gt,array_ge,array_larger,array_smaller,btarraycmp,width_bucket}'::name[]))) then
    bad := 'it compares by the order of an enum that another role owns: name its labels, as in  status in (''new'', ''paid'')';
  end if;
  return bad;
end
$$;

-- Checks a filter as Postgres understands it, and makes outbox.inside_<id> of it. Returns what the mapping keeps of it.
create or replace function outbox.compose_inside(watched_id int, tbl regclass, filter text) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on set quote_all_identifiers = off
as $$
declare
  title  text := (select quote_ident(c.relname) from pg_class c where c.oid = tbl);
  given  text := (select string_agg(format('null::%s%s as %I', c.type, outbox.collated(c.collation, c.way, false, current_user::name), c.name), ', ' order by c.n) from outbox.filter_columns(tbl, current_user::name) c);
  actual text := (select string_agg(format('null::%s%s as %I', case when c.way like 'label%' then format_type(c.of_type, -1) else c.type end,
                               case when c.way like 'label%' then '' else outbox.collated(c.collation, c.way, false, current_user::name) end, c.name), ', ' order by c.n)
                    from outbox.filter_columns(tbl, current_user::name) c);
  tree   text;
  bad    text;
  needs  text[];
begin
  begin
    tree := outbox.filter_tree(given, title, filter);
    select coalesce(array_agg(c.name order by c.n), '{}') into needs from outbox.filter_columns(tbl, current_user::name) c
     where c.n in (select m[1]::int from regexp_matches(tree, '\{VAR :varno \d+ :varattno (\d+) ', 'g') m);
    bad := coalesce(outbox.unfit_filter(tree, current_user::name),
                    outbox.unfit_columns(tbl, needs, case when actual <> given then outbox.filter_tree(actual, title, filter) end, current_user::name),
                    outbox.unfit_comparison(tbl, tree, current_user::name));
    if bad is not null then
      raise exception using message = bad, errcode = 'invalid_parameter_value';
    end if;
    -- As the role that captures: what it may not call is refused here. Not over the table, whose owner's code planning may run.
    execute format(E'explain select from (select %s offset 0) %s where (%s\n)', given, title, filter);
  exception when query_canceled or lock_not_available or serialization_failure or deadlock_detected then
    raise;
  when others then
    raise exception 'cannot watch %: its filter is refused: %', tbl, case
        when sqlstate = '42703' and sqlerrm ~ '"?\y(tableoid|ctid|xmin|xmax|cmin|cmax)\y' then 'it names a system column' else sqlerrm end
      using errcode = 'invalid_parameter_value',
            hint = coalesce(format('a filter of %I''s reads these as their text or not at all, because of whose types they are: ', current_user) || (
                       select string_agg(quote_ident(c.name), ', ' order by c.n) from outbox.filter_columns(tbl, current_user::name) c
                        where c.type like 'text%' and c.of_type::int8 >= 16384 and strpos(filter, c.name) > 0),
                     'one condition over columns of the row, of functions that are immutable or stable, as in  deleted_at is null');
  end;
  if needs = '{}' then
    raise exception 'cannot watch %: its filter names no column of the row', tbl using errcode = 'invalid_parameter_value';
  end if;
  perform outbox.make_inside('inside_' || watched_id, tbl, title, filter, needs, tree);
  return jsonb_strip_nulls(jsonb_build_object(
    'needs', needs, 'types', outbox.read_types(tbl, to_jsonb(needs), current_user::name), 'lasting', outbox.is_lasting(filter, tree),
    'texts', (select coalesce(jsonb_agg(c.name order by c.n), '[]') from outbox.filter_columns(tbl, current_user::name) c where c.name = any (needs) and c.way in ('read', 'label', 'labels')),
    'labels', (select jsonb_object_agg(c.name, (
                 select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_enum e
                  where e.enumtypid = case c.way when 'label' then c.of_type else (select t.typelem from pg_type t where t.oid = c.of_type) end))
                 from outbox.filter_columns(tbl, current_user::name) c where c.name = any (needs) and c.way in ('label', 'labels'))));
end
$$;

-- Makes the function of a filter whose tree was found good.
--
-- A filter must not fail the application's statement (promise I7): the function answers null then, and capture
-- records a mark in the row's place. Literals of dates and the like depend on settings: pinned.
create or replace function outbox.make_inside(name text, tbl regclass, title text, filter text, needs text[], tree text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
declare
  -- What is made of these types alone, by functions that read no setting, needs no settings.
  plain boolean := not exists (select from regexp_matches(tree, ':(?:var|const|funcresult|opresult|result|array|element)type (\d+)', 'g') m
                                where m[1]::oid <> all ('{bool,int2,int4,int8,numeric,text,varchar,bpchar,name,uuid,jsonb,unknown}'::regtype[]))
                   and not exists (select from outbox.called_by(tree) f where f.provolatile <> 'i')
                   and tree !~ '\{(SQLVALUEFUNCTION|COERCEVIAIO|XMLEXPR)' and filter !~ '\\';
  handed jsonb := outbox.read_types(tbl, to_jsonb(needs), current_user::name);
  types oid[];
  args  text;
  body  text;
begin
  select array_agg(case when c.way in ('plain', 'own') then c.of_type else 'text'::regtype end order by c.n),
         string_agg(case when c.way in ('plain', 'own') then c.type else 'text' end, ', ' order by c.n),
         string_agg(format(case c.way when 'read' then '((select v from json_to_record(json_build_object(''v'', $%1$s)) x(v %3$s))%4$s) as %2$I'
                                      when 'labels' then '($%1$s::text[]%4$s) as %2$I' else '($%1$s%4$s) as %2$I' end, u.n, c.name, c.type, coalesce(handed -> c.name ->> 2, '')), ', ' order by c.n)
    into types, args, body
    from outbox.filter_columns(tbl, current_user::name) c join unnest(needs) with ordinality u(name, n) on u.name = c.name;
  execute format(
    'create function outbox.%I(%s) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp%s as %L', name, args,
    case when not plain then ' set standard_conforming_strings = on' || (
      select string_agg(format(' set %s = %L', p.name, p.setting), '') from (
        select pins.setting, lag(pins.setting) over (order by n) as name, n from unnest(outbox.spelling(null::regclass, null::text[])) with ordinality pins(setting, n)) p where p.n % 2 = 0)
      else '' end,
    -- Names of types are read once a plan: one that speaks of the table is made anew when the table is altered.
    format(E'#variable_conflict use_column\nbegin\n  return (select coalesce((%s\n), false) from (select %s%s) %s);\nexception when others or assert_failure then\n  return null;\nend',
           filter, body, case when body like '%json_to_record%' then format(' where %L::regclass is not null', tbl::oid) end, title));
  -- By numbers: a name may have been another type's when it was read.
  if not exists (select from pg_proc p where p.oid = to_regprocedure(format('outbox.%I(%s)', name, args)) and array_to_string(p.proargtypes::oid[], ' ') = array_to_string(types, ' ')) then
    raise exception 'cannot watch %: a type of its filter''s columns is being renamed: try again', tbl using errcode = 'invalid_parameter_value';
  end if;
  perform outbox.close_function(format('outbox.%I(%s)', name, args)::regprocedure, '{}'::name[]);
end
$$;

revoke all on all functions in schema outbox from public;
