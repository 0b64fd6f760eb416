-- Writing transactions that have been open for longer than some seconds, prepared ones among them: their changes
-- wait for them to end. A role sees others' only with pg_read_all_stats; prepared ones it always sees.
select 'prepared' as kind, gid as name, extract(epoch from clock_timestamp() - prepared)::float8 as age
  from pg_prepared_xacts where database = current_database() and prepared < clock_timestamp() - %(older)s * interval '1 s'
union all
select 'open', pid::text, extract(epoch from clock_timestamp() - xact_start)::float8
  from pg_stat_activity where datname = current_database() and backend_xid is not null and pid <> pg_backend_pid()
                          and xact_start < clock_timestamp() - %(older)s * interval '1 s'
 order by age desc
