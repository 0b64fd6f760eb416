-- What transactions that began on earlier pages left there, without what of them was sent before. In sheaves: see
-- window_by_id.sql.
select c.table_name::varchar, c.op::varchar, c.shape, bool_or(c.unflushed),
       string_agg(int8send(c.id) || xid8send(c.xid) || timestamptz_send(c.created_at) || int8send(c.size::int8), '' order by c.id),
       string_agg(c.key, e'\x1d' order by c.id), string_agg(case when c.fetched then c.row end, e'\x1d' order by c.id)
  from (select c.*, coalesce(octet_length(c.row), 0) as size, coalesce(octet_length(c.row) <= %(row_bytes)s, false) as fetched
          from unnest(%(xids)s::xid8[], %(above)s::int8[]) begun(of_xid, above)
          join outbox.change c on c.xid = of_xid and c.id > above and c.id <= %(upto)s) c
 group by c.id >> 8, c.shape, c.op, c.table_name, c.fetched
 order by c.id >> 8
