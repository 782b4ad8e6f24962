-- Store a job that has a key: new, or the update of one that is not running. An unchanged schedule keeps its
-- next occurrence, so a redeploy postpones nothing; a changed one takes effect at once.
-- No row comes back if it runs, or is of the other kind (one-time, recurring).
with clock as materialized (select {now}() as now)
insert into {jobs} as j (name, key, priority, run_at, scheduled_at, created_at, parameters, options, schedule)
select %(name)s, %(key)s, %(priority)s, due.at, coalesce(%(scheduled_at)s::timestamptz, due.at), due.now,
       %(parameters)s::jsonb, %(options)s, %(schedule)s
from (
    select c.now, coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second', c.now) as at
    from clock c
) due
where %(name)s in {shared_names} or (
    -- Kinds never mix under one name, so its first row with a key tells (see insert.sql). One-time jobs without a key
    -- that already wait are not looked for: an index for them would cost every enqueue, a scan every first schedule.
    select (k.schedule is null) = (%(schedule)s::text is null) from {jobs} k
    where k.name = %(name)s and k.key is not null order by k.name, k.key limit 1
) is not false
on conflict (name, key) where key is not null do update
set priority = excluded.priority,
    parameters = excluded.parameters,
    options = excluded.options,
    schedule = excluded.schedule,
    run_at = case when j.schedule is not null and j.schedule = excluded.schedule then j.run_at
                  else excluded.run_at end,
    scheduled_at = case when j.schedule is not null and j.schedule = excluded.schedule then j.scheduled_at
                        else excluded.scheduled_at end,
    -- Whatever was counted or asked for before belonged to what this replaces.
    failures = case when j.schedule is not null and j.schedule = excluded.schedule then j.failures else 0 end,
    stalls = case when j.schedule is not null and j.schedule = excluded.schedule then j.stalls else 0 end,
    cancel_requested = j.cancel_requested and j.schedule is not null and j.schedule = excluded.schedule
                       and j.after_run is distinct from 'delete',
    after_run = nullif(j.after_run, 'delete')
where j.state <> 'running' and (j.schedule is null) = (excluded.schedule is null)
  and j.completed_at is null  -- its work is done and waits for its record; a new job must not be taken for it
returning {job_columns}, pg_current_xact_id()::text::bigint as transaction,
          case when %(notify)s::boolean then pg_notify({channel}, 'due') end
