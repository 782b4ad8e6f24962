-- For each table of history: which days' partitions are missing, today's and tomorrow's, and what is in the default one.
with clock as materialized (select {now}() at time zone 'UTC' as today)
select p.parent,
       array(
           select to_char(d.day, 'YYYY-MM-DD')
           from clock c
           cross join lateral (values (c.today), (c.today + interval '1 day')) as d(day)
           where to_regclass(
               quote_ident(%(schema)s) || '.' || quote_ident(%(prefix)s || p.parent || to_char(d.day, '"_p"YYYYMMDD'))
           ) is null
           order by 1
       ) as missing,
       p.occupied,
       (select s.n_live_tup from pg_stat_all_tables s
        where s.schemaname = %(schema)s and s.relname = %(prefix)s || p.parent || '_default') as rows
from (
    select 'runs' as parent, exists (select from {runs_default}) as occupied
    union all
    select 'run_logs', exists (select from {run_logs_default})
) p
order by p.parent desc
