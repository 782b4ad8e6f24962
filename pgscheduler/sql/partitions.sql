-- The daily partitions that exist, with the table each belongs to.
select p.relname, c.relname, pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT'
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
join pg_class p on p.oid = i.inhparent
join pg_namespace n on n.oid = p.relnamespace
where n.nspname = %(schema)s and p.relname = any (%(parents)s::text[])
