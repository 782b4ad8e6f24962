-- Seconds until the next pending job is due, over all priorities, and the time; null when nothing waits.
-- What came due after `since`, the last such question, counts (0 or less): it may be younger than the last claim.
with recursive
clock as materialized (select {now}() as now),
found as (
    select (select min(j.priority) from {jobs} j where j.state = 'pending') as priority
    union all
    select (select min(j.priority) from {jobs} j where j.state = 'pending' and j.priority > f.priority)
    from found f
    where f.priority is not null
)
select extract(epoch from min(next.run_at) - (select now from clock))::float8, (select now from clock)
from found f
cross join lateral (
    select j.run_at from {jobs} j
    where j.state = 'pending' and j.priority = f.priority and j.run_at > (select least(now, %(since)s::timestamptz) from clock)
    order by j.run_at
    limit 1
) next
