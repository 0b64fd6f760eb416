-- Letters whose cause may have gone, of these SQLSTATEs (null: of all): a table was copied, the target's tables changed, or
-- rows arrived that these refer to, or gave up what these want. Those of tables that are out go another way, and so do those that
-- took the target too long, or were locked there: see letters_hurdles.sql.
update outbox.held set wanted = 'retry'
 where sqlstate is not null and sqlstate <> 'OB010' and sqlstate !~ '^(08|25|40|53|55P03|57|58|XX)' and wanted is null
   and (%(states)s::text[] is null or sqlstate = any (%(states)s::text[]))
