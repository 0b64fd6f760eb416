-- Is the daemon's role there, and may this one drop it? From version 16 on CREATEROLE reaches those alone that one administers.
select d.rolname is not null,
       me.rolsuper or (me.rolcreaterole and (current_setting('server_version_num')::int < 160000
                                             or pg_has_role(current_user, d.oid, 'member with admin option')))
  from pg_roles me left join pg_roles d on d.rolname = 'outboxd'
 where me.rolname = current_user
