-- Store one one-time job without a key. No row comes back if the name belongs to a recurring job.
insert into {jobs} (name, priority, run_at, scheduled_at, created_at, parameters, options)
select %(name)s, %(priority)s, due.at, due.at, due.now, %(parameters)s::jsonb, %(options)s
from (
    select c.now, coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second', c.now) as at
    from (select {now}() as now) c
) due
where (
    -- Kinds never mix under one name, so its first row with a key tells. The order makes that one index probe,
    -- whatever the planner believes of the table.
    select j.schedule is not null from {jobs} j
    where j.name = %(name)s and j.key is not null order by j.name, j.key limit 1
) is not true
returning id, run_at, scheduled_at, created_at, pg_current_xact_id()::text::bigint as transaction
