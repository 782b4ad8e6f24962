-- Waiting jobs whose name no living node has registered. Looked at: the first `names` names of jobs with a key, `sample`
-- jobs each, and of the first `levels` priorities the `sample` longest due.
with recursive
clock as materialized (select {now}() as now),
alive as materialized (
    select n.names from {nodes} n cross join clock c
    where n.stopped_at is null and n.heartbeat_at > c.now - n.no_heartbeat_timeout
),
keyed as (
    (select j.name from {jobs} j where j.key is not null order by j.name, j.key limit 1)
    union all
    select (select j.name from {jobs} j where j.key is not null and j.name > k.name order by j.name, j.key limit 1)
    from keyed k
    where k.name is not null
),
found as (
    select (select min(j.priority) from {jobs} j where j.state = 'pending') as priority
    union all
    select (select min(j.priority) from {jobs} j where j.state = 'pending' and j.priority > f.priority)
    from found f
    where f.priority is not null
),
seen as (
    select picked.*
    from (select k.name from keyed k where k.name is not null limit %(names)s) named
    cross join lateral (
        select j.id, j.name, j.state, j.run_at from {jobs} j
        where j.name = named.name and j.key is not null
        order by j.name, j.key
        limit %(sample)s
    ) picked
    where not exists (select from alive a where named.name = any (a.names))
    union  -- a job may be in both
    select picked.*
    from (select f.priority from found f where f.priority is not null limit %(levels)s) l
    cross join lateral (
        select j.id, j.name, j.state, j.run_at from {jobs} j
        where j.state = 'pending' and j.priority = l.priority
        order by j.run_at, j.id
        limit %(sample)s
    ) picked
    where not exists (select from alive a where picked.name = any (a.names))
)
select s.name, count(*) as jobs, count(*) filter (where s.state = 'pending' and s.run_at <= c.now) as due,
       extract(epoch from c.now - min(s.run_at) filter (where s.state = 'pending' and s.run_at <= c.now))::float8 as seconds,
       extract(epoch from c.now - (select max(n.heartbeat_at) from {nodes} n where s.name = any (n.names)))::float8 as last_known
from seen s
cross join clock c
where s.state <> 'running'
group by s.name, c.now
order by jobs desc, s.name
