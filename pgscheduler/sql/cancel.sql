-- Cancel: a one-time job that has not started ends here; a running one is asked to stop.
with target as materialized (
    select j.id, j.state, j.schedule
    from {jobs} j
    where j.id = coalesce(%(id)s::bigint, (select k.id from {jobs} k where k.name = %(name)s and k.key = %(key)s))
    for update
),
-- By id, not by address: a heartbeat that we had to wait for has moved the row.
ended as (
    delete from {jobs} j
    where j.id = any (array(select t.id from target t where t.state <> 'running' and t.schedule is null))
    returning j.*
),
asked as (
    update {jobs} j set cancel_requested = true
    where j.id = any (array(select t.id from target t where t.state = 'running'))
),
recorded as (
    insert into {runs} (job_id, scheduled_at, finished_at, attempt, outcome, name, key, parameters, options, reason)
    select e.id, e.scheduled_at, {now}(), e.failures + e.stalls,
           -- Its own transaction may have completed it already: then only the record was missing.
           case when e.completed_at is null then 'cancelled' else 'completed' end, e.name, e.key, e.parameters, e.options,
           %(reason)s
    from ended e
)
select t.id, t.state, t.schedule is not null as recurring from target t
