-- Store one one-time job without a key. No row comes back if the name belongs to a recurring job.
with clock as materialized (select {now}() as now)  -- once: what is due now is due when it was created
insert into {jobs} (name, priority, run_at, scheduled_at, created_at, parameters, options)
select %(name)s, %(priority)s, due.at, due.at, due.now, %(parameters)s::jsonb, %(options)s
from (
    select c.now, coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second', c.now) as at
    from clock c
) due
where %(name)s in {shared_names} or (
    -- Kinds never mix under one name, so its first row with a key tells. The order makes that one index probe,
    -- whatever the planner believes of the table.
    select j.schedule is not null from {jobs} j
    where j.name = %(name)s and j.key is not null order by j.name, j.key limit 1
) is not true
returning id, run_at, scheduled_at, created_at, pg_current_xact_id()::text::bigint as transaction,
          case when %(notify)s::boolean then pg_notify({channel}, 'due') end
