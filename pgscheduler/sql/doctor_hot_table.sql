-- The table of live jobs as the statistics show it: dead rows, space, vacuum. No row of it is read.
select s.n_live_tup as live, s.n_dead_tup as dead,
       extract(epoch from {now}() - greatest(s.last_vacuum, s.last_autovacuum))::float8 as vacuumed,
       pg_relation_size(c.oid) as table_bytes, pg_indexes_size(c.oid) as index_bytes,
       (select sum(w.avg_width) from pg_stats w where w.schemaname = n.nspname and w.tablename = c.relname)::integer as row_bytes,
       coalesce(o.threshold, current_setting('autovacuum_vacuum_threshold'))::float8
           + coalesce(o.scale, current_setting('autovacuum_vacuum_scale_factor'))::float8 * s.n_live_tup as vacuum_due,
       coalesce(o.enabled, 'on')::boolean as autovacuum
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
join pg_stat_all_tables s on s.relid = c.oid
cross join lateral (
    select max(p.option_value) filter (where p.option_name = 'autovacuum_enabled') as enabled,
           max(p.option_value) filter (where p.option_name = 'autovacuum_vacuum_threshold') as threshold,
           max(p.option_value) filter (where p.option_name = 'autovacuum_vacuum_scale_factor') as scale
    from pg_options_to_table(c.reloptions) p
) o
where c.oid = to_regclass(%(jobs)s)
