-- Record runs that ended in any other way, and what their jobs do next: end, run again, or go back unstarted.
-- Each line is fenced by its token, and a row that somebody holds locked is left alone, so that it holds up no other.
-- The answer is who was accepted and, unless all were, who still has its claim, accepted or locked.
with clock as materialized (select {now}() as now),
given as materialized (
    select * from json_to_recordset(%(outcomes)s::json) as g(
        id bigint, token bigint, outcome text, ends boolean, started float8, ended float8, attempt smallint,
        reason text, error text, result jsonb, progress jsonb,
        failures smallint, stalls smallint, delay float8, next_at timestamptz, next_run_at timestamptz,
        skipped json, logs json, marked boolean)
),
-- The rows that are still ours, as they are now, and locked: looked up one by one (a lateral with a lock is never
-- turned into a join), so that no statistics can make it slow. `job` is the row before this statement.
held as materialized (
    select g.*, f.job, f.leaves
    from given g
    cross join lateral (
        select j as job,
               g.ends or (j.after_run is not distinct from 'delete' and g.outcome is not null)
                      or (j.completed_at is not null and j.schedule is null and g.outcome is not null) as leaves
        from {jobs} j
        where j.id = g.id and j.token = g.token
          -- What its own transaction completed must say so: a failover may have kept the claim and lost the transaction.
          and (g.marked is not true or j.completed_at is not null)
        for update skip locked
    ) f
),
-- By id, not by address: a row that was written after this statement began, and before it was locked here, has moved to
-- a place that the statement's snapshot cannot see.
ended as (
    delete from {jobs} j where j.id = any (array(select h.id from held h where h.leaves))
),
moved as (
    update {jobs} j
    set token = null, claimed_at = null, heartbeat_at = null, node_id = null,
        (state, after_run, cancel_requested, completed_at, result, progress, failures, stalls, scheduled_at, run_at,
         last_run, last_success, last_failure, consecutive_failures, execution_time_ms, last_error) = (
        select
            case when j.after_run = 'pause' then 'paused' else 'pending' end,
            -- What was never started is not deleted here: whoever claims it next does, and records it.
            case when h.outcome is null and j.after_run = 'delete' then 'delete' end,
            -- A cancel ends the occurrence that it found: no retry of it runs, and the next one is not touched.
            j.cancel_requested and (h.outcome is null or h.next_at is null),
            -- ctx.transaction() completed it, yet the node thinks otherwise (its commit's answer was lost): the
            -- mark stays, and whoever claims the job next only records it.
            case when h.next_at is null then j.completed_at end,
            case when h.next_at is null then j.result end,
            case when h.next_at is null then j.progress end,
            h.failures,
            h.stalls,
            coalesce(h.next_at, j.scheduled_at),
            case when h.next_run_at is not null then h.next_run_at
                 when j.completed_at is not null then j.run_at
                 when h.delay is not null then (select now from clock) + h.delay * interval '1 second'
                 else j.run_at end,
            case when h.started is null then j.last_run
                 else j.claimed_at + h.started * interval '1 second' end,
            case when h.outcome = 'completed' then j.claimed_at + h.ended * interval '1 second'
                 else j.last_success end,
            case when h.outcome in ('failed', 'timed_out', 'stalled')
                 then j.claimed_at + h.ended * interval '1 second' else j.last_failure end,
            case when h.outcome = 'completed' then 0
                 when h.outcome in ('failed', 'timed_out', 'stalled') then j.consecutive_failures + 1
                 else j.consecutive_failures end,
            case when h.started is null then j.execution_time_ms
                 else ((h.ended - h.started) * 1000)::bigint end,
            case when h.outcome in ('failed', 'timed_out', 'stalled') then coalesce(h.error, h.reason)
                 else j.last_error end
        from held h
        where h.id = j.id and h.token = j.token
    )
    where j.id = any (array(select h.id from held h where not h.leaves))
),
recorded as (
    insert into {runs} (job_id, token, scheduled_at, started_at, finished_at, node_id, attempt, outcome,
                        name, key, schedule, parameters, options, result, progress, reason, error)
    select h.id, h.token, (h.job).scheduled_at,
           (h.job).claimed_at + h.started * interval '1 second', (h.job).claimed_at + h.ended * interval '1 second',
           (h.job).node_id, h.attempt,
           case when (h.job).completed_at is not null then 'completed'
                -- Deleted meanwhile: it will not go on, so this was its end.
                when h.leaves and h.outcome in ('interrupted', 'stalled') then 'cancelled'
                else h.outcome end,
           (h.job).name, (h.job).key, (h.job).schedule, (h.job).parameters, (h.job).options,
           coalesce(h.result, (h.job).result), coalesce(h.progress, (h.job).progress),
           case when (h.job).completed_at is null and h.leaves and h.outcome in ('interrupted', 'stalled')
                then 'deleted' else h.reason end, h.error
    from held h
    where h.outcome is not null
      and ((h.job).completed_at is null or h.leaves or h.next_at is not null)
    union all
    select h.id, null, s.scheduled_at, null, (select now from clock), (h.job).node_id, 0, 'skipped',
           (h.job).name, (h.job).key, (h.job).schedule, (h.job).parameters, (h.job).options, s.result, null, s.reason,
           null
    from held h
    cross join lateral json_to_recordset(h.skipped) as s(scheduled_at timestamptz, reason text, result jsonb)
),
logged as (
    insert into {run_logs} (job_id, token, at, level, event, fields)
    select h.id, h.token, (h.job).claimed_at + l.at * interval '1 second', l.level, l.event, l.fields
    from held h
    cross join lateral json_to_recordset(h.logs) as l(at float8, level text, event text, fields jsonb)
)
select array_agg(array[h.id, h.token]),
       case when count(*) < (select count(*) from given) then (
           select array_agg(array[g.id, g.token])
           from given g
           cross join lateral (
               select from {jobs} j
               where j.id = g.id and j.token = g.token and (g.marked is not true or j.completed_at is not null)
               offset 0  -- one look-up each, whatever the planner believes
           ) ours
       ) end
from held h
