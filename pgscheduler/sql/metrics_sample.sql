-- The same, extrapolated from about `pages` pages of a big table; claims, of which there are few, from their index.
-- The same pages each time, so that the figures follow the table and not the dice.
with clock as materialized (select {now}() as now),
share as materialized (
    select least(100.0, 100.0 * %(pages)s
                        / greatest(pg_relation_size(to_regclass(%(jobs)s)) / current_setting('block_size')::integer, 1)) as percent
)
select s.name, s.state, (count(*) * 100 / p.percent)::bigint as jobs,
       (count(*) filter (where s.state = 'pending' and s.run_at <= c.now) * 100 / p.percent)::bigint as due
from {jobs} s tablesample system ((select percent from share)) repeatable (0)
cross join clock c
cross join share p
where s.state <> 'running'
group by s.name, s.state, p.percent
union all
select r.name, 'running', count(*), 0
from (select j.name from {jobs} j where j.state = 'running' limit %(most)s) r
group by r.name
