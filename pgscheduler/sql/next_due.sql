-- Seconds until the next pending job is due (0: one is), over all priorities; null when nothing waits.
with recursive
clock as materialized (select {now}() as now),
found as (
    select (select min(j.priority) from {jobs} j where j.state = 'pending') as priority
    union all
    select (select min(j.priority) from {jobs} j where j.state = 'pending' and j.priority > f.priority)
    from found f
    where f.priority is not null
)
select extract(epoch from min(next.run_at) - (select now from clock))::float8
from found f
cross join lateral (
    select j.run_at from {jobs} j
    where j.state = 'pending' and j.priority = f.priority and j.run_at > (select now from clock)
    order by j.run_at
    limit 1
) next
