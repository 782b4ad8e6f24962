-- Give back the jobs whose node is silent: due again at once, the stall counted and recorded.
-- Whoever claims one next decides whether it may still run; that node knows the class and its policies.
with clock as materialized (select {now}() as now),
silent as materialized (
    select j.*
    from {jobs} j
    left join {nodes} n on n.id = j.node_id
    where j.state = 'running'
      and coalesce(j.heartbeat_at, j.claimed_at)
          < (select now from clock) - coalesce(n.no_heartbeat_timeout, %(timeout)s * interval '1 second')
    limit %(batch)s
    for update of j skip locked
),
reset as (
    update {jobs} j
    set state = case when j.after_run = 'pause' then 'paused' else 'pending' end,
        after_run = case when j.after_run = 'delete' then 'delete' end,
        run_at = least(j.run_at, (select now from clock)),
        stalls = j.stalls + case when j.completed_at is null then 1 else 0 end,
        token = null, claimed_at = null, heartbeat_at = null, node_id = null
    where j.id = any (array(select id from silent))  -- by id: see finish.sql
),
recorded as (
    insert into {runs} (job_id, token, scheduled_at, started_at, finished_at, node_id, attempt, outcome,
                        name, key, schedule, parameters, options, progress, reason)
    select s.id, s.token, s.scheduled_at, s.claimed_at, (select now from clock), s.node_id,
           s.failures + s.stalls + 1, 'stalled', s.name, s.key, s.schedule, s.parameters, s.options, s.progress,
           'no heartbeat since ' || to_char(coalesce(s.heartbeat_at, s.claimed_at) at time zone 'UTC',
                                            'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    from silent s
    where s.completed_at is null
)
select s.id, s.name, s.key, s.token, s.node_id from silent s
