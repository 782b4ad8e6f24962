-- Jobs that are due for longer than `late` seconds, by name: of the first `levels` priorities, the `sample` longest due.
with recursive
clock as materialized (select {now}() as now),
alive as materialized (
    select n.names from {nodes} n cross join clock c
    where n.stopped_at is null and n.heartbeat_at > c.now - n.no_heartbeat_timeout
),
found as (
    select (select min(j.priority) from {jobs} j where j.state = 'pending') as priority
    union all
    select (select min(j.priority) from {jobs} j where j.state = 'pending' and j.priority > f.priority)
    from found f
    where f.priority is not null
),
late as materialized (
    select picked.*
    from (select f.priority from found f where f.priority is not null limit %(levels)s) l
    cross join lateral (
        select j.id, j.name, j.run_at, j.schedule is not null as recurring
        from {jobs} j
        where j.state = 'pending'
          and j.priority = l.priority
          and j.run_at < (select c.now - %(late)s * interval '1 second' from clock c)
        order by j.run_at, j.id
        limit %(sample)s
    ) picked
)
select l.name, l.recurring, count(*) as jobs, (array_agg(l.id order by l.run_at))[1:3] as ids,
       extract(epoch from c.now - min(l.run_at))::float8 as seconds,
       exists (select from alive a where l.name = any (a.names)) as known
from late l
cross join clock c
group by l.name, l.recurring, c.now
order by seconds desc
