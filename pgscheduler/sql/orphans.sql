-- Retire jobs whose name no living node has registered for `timeout` seconds. Never a running one.
with clock as materialized (select {now}() as now),
seen as (
    select name, max(n.heartbeat_at) as at from {nodes} n cross join unnest(n.names) as name group by name
),
orphaned as materialized (
    select j.ctid
    from {jobs} j
    left join seen s on s.name = j.name
    where j.state <> 'running'
      and greatest(j.created_at, s.at) < (select now from clock) - %(timeout)s * interval '1 second'
    limit %(batch)s
    for update of j skip locked
),
retired as (
    delete from {jobs} j where j.ctid = any (array(select ctid from orphaned))
    returning j.*
),
recorded as (
    insert into {runs} (job_id, scheduled_at, finished_at, attempt, outcome, name, key, schedule,
                        parameters, options, reason)
    select r.id, r.scheduled_at, (select now from clock), 0, 'orphaned', r.name, r.key, r.schedule,
           r.parameters, r.options, 'no node has registered this name'
    from retired r
)
select r.id, r.name, r.key from retired r
