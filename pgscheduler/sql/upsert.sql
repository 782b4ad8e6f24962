-- Store a job that has a key: new, or the update of one that is not running. An unchanged schedule keeps its
-- next occurrence, so a redeploy postpones nothing; a changed one takes effect at once.
-- No row comes back if it runs, or is of the other kind (one-time, recurring).
insert into {jobs} as j (name, key, priority, run_at, scheduled_at, created_at, parameters, options, schedule)
select %(name)s, %(key)s, %(priority)s, due.at, coalesce(%(scheduled_at)s::timestamptz, due.at), due.now,
       %(parameters)s::jsonb, %(options)s, %(schedule)s
from (
    select c.now, coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second', c.now) as at
    from (select {now}() as now) c
) due
where %(schedule)s::text is not null or not exists (
    select from {jobs} k where k.name = %(name)s and k.key is not null and k.schedule is not null
)
on conflict (name, key) where key is not null do update
set priority = excluded.priority,
    parameters = excluded.parameters,
    options = excluded.options,
    schedule = excluded.schedule,
    run_at = case when j.schedule is not null and j.schedule = excluded.schedule then j.run_at
                  else excluded.run_at end,
    scheduled_at = case when j.schedule is not null and j.schedule = excluded.schedule then j.scheduled_at
                        else excluded.scheduled_at end
where j.state <> 'running' and (j.schedule is null) = (excluded.schedule is null)
returning j.*, pg_current_xact_id()::text::bigint as transaction
