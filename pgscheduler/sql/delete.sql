-- Delete a job: at once if it is not running, else when its run has ended, which is asked to stop.
with target as materialized (
    select j.id, j.state
    from {jobs} j
    where j.id = coalesce(%(id)s::bigint, (select k.id from {jobs} k where k.name = %(name)s and k.key = %(key)s))
    for update
),
-- By id, not by address: a heartbeat that we had to wait for has moved the row.
ended as (
    delete from {jobs} j
    where j.id = any (array(select t.id from target t where t.state <> 'running'))
    returning j.*
),
asked as (
    update {jobs} j set cancel_requested = true, after_run = 'delete'
    where j.id = any (array(select t.id from target t where t.state = 'running'))
),
recorded as (
    insert into {runs} (job_id, scheduled_at, finished_at, attempt, outcome, name, key, schedule, parameters, options,
                        reason)
    select e.id, e.scheduled_at, {now}(), e.failures + e.stalls,
           case when e.completed_at is null then 'cancelled' else 'completed' end, e.name, e.key, e.schedule, e.parameters,
           e.options, 'deleted'
    from ended e
)
select t.id, t.state from target t
