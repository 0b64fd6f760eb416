-- What others were given of schema outbox and were not meant to have: one line each of whom and of what kind. `fix`: what takes it back.
select grantee, kind, array_agg(object order by object) as objects,
       (select array_agg(distinct r order by r) from outbox.foreign_grants() f cross join lateral unnest(f.rights) r where (f.grantee, f.kind) = (g.grantee, g.kind)) as rights,
       string_agg(fix, '; ' order by object) || ';' as fix
  from outbox.foreign_grants() g
 group by grantee, kind order by grantee, kind
