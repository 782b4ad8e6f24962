-- Record runs that ended in any other way, and what their jobs do next: end, run again, or go back unstarted.
-- Each line is fenced by its token; what is returned was accepted, the rest had lost its claim.
with clock as materialized (select {now}() as now),
given as materialized (
    select * from json_to_recordset(%(outcomes)s::json) as g(
        id bigint, token bigint, outcome text, ends boolean, started float8, ended float8, attempt smallint,
        scheduled_at timestamptz, reason text, error text, result jsonb, progress jsonb,
        failures smallint, stalls smallint, delay float8, next_at timestamptz, next_run_at timestamptz,
        skipped json, logs json)
),
ended as (
    delete from {jobs} j using given g
    where j.id = g.id and j.token = g.token
      and (g.ends or (j.after_run is not distinct from 'delete' and g.outcome is not null)
           or (j.completed_at is not null and j.schedule is null))
    returning j.*
),
moved as (
    update {jobs} j
    set state = case when j.after_run = 'pause' then 'paused' else 'pending' end,
        token = null, claimed_at = null, heartbeat_at = null, node_id = null,
        -- What was never started is not deleted here: whoever claims it next does, and records it.
        after_run = case when g.outcome is null and j.after_run = 'delete' then 'delete' end,
        -- A cancel ends the occurrence that it found: no retry of it runs, and the next one is not touched.
        cancel_requested = j.cancel_requested and (g.outcome is null or g.next_at is null),
        -- ctx.transaction() completed it, yet the node thinks otherwise (its commit's answer was lost): the
        -- mark stays, and whoever claims the job next only records it.
        completed_at = case when g.next_at is null then j.completed_at end,
        result = case when g.next_at is null then j.result end,
        progress = case when g.next_at is null then j.progress end,
        failures = g.failures,
        stalls = g.stalls,
        scheduled_at = coalesce(g.next_at, g.scheduled_at, j.scheduled_at),
        run_at = case when g.next_run_at is not null then g.next_run_at
                      when j.completed_at is not null then j.run_at
                      when g.delay is not null then (select now from clock) + g.delay * interval '1 second'
                      else j.run_at end,
        last_run = case when g.started is null then j.last_run
                        else j.claimed_at + g.started * interval '1 second' end,
        last_success = case when g.outcome = 'completed' then j.claimed_at + g.ended * interval '1 second'
                            else j.last_success end,
        last_failure = case when g.outcome in ('failed', 'timed_out', 'stalled')
                            then j.claimed_at + g.ended * interval '1 second' else j.last_failure end,
        consecutive_failures = case when g.outcome = 'completed' then 0
                                    when g.outcome in ('failed', 'timed_out', 'stalled') then j.consecutive_failures + 1
                                    else j.consecutive_failures end,
        execution_time_ms = case when g.started is null then j.execution_time_ms
                                 else ((g.ended - g.started) * 1000)::bigint end,
        last_error = case when g.outcome in ('failed', 'timed_out', 'stalled') then coalesce(g.error, g.reason)
                          else j.last_error end
    from given g, {jobs} old
    where j.id = g.id and j.token = g.token
      and not (g.ends or (j.after_run is not distinct from 'delete' and g.outcome is not null)
               or (j.completed_at is not null and j.schedule is null))
      and old.id = j.id  -- the row as it was: returning gives the new values
    returning old.*
),
accepted as (
    select * from ended union all select * from moved
),
recorded as (
    insert into {runs} (job_id, token, scheduled_at, started_at, finished_at, node_id, attempt, outcome,
                        name, key, schedule, parameters, options, result, progress, reason, error)
    select a.id, a.token, coalesce(g.scheduled_at, a.scheduled_at),
           a.claimed_at + g.started * interval '1 second', a.claimed_at + g.ended * interval '1 second',
           a.node_id, g.attempt, case when a.completed_at is null then g.outcome else 'completed' end, a.name, a.key, a.schedule, a.parameters, a.options,
           coalesce(g.result, a.result), coalesce(g.progress, a.progress), g.reason, g.error
    from accepted a join given g on g.id = a.id and g.token = a.token
    where g.outcome is not null
      and (a.completed_at is null or a.schedule is null or g.next_at is not null)
    union all
    select a.id, null, s.scheduled_at, null, (select now from clock), a.node_id, 0, 'skipped',
           a.name, a.key, a.schedule, a.parameters, a.options, s.result, null, s.reason, null
    from accepted a join given g on g.id = a.id and g.token = a.token
    cross join lateral json_to_recordset(g.skipped) as s(scheduled_at timestamptz, reason text, result jsonb)
),
logged as (
    insert into {run_logs} (job_id, token, at, level, event, fields)
    select a.id, a.token, a.claimed_at + l.at * interval '1 second', l.level, l.event, l.fields
    from accepted a join given g on g.id = a.id and g.token = a.token
    cross join lateral json_to_recordset(g.logs) as l(at float8, level text, event text, fields jsonb)
)
select array_agg(array[a.id, a.token]) from accepted a
