-- Store a job that has a key, unless there is one. No row comes back then, or if the name is of the other kind.
with clock as materialized (select {now}() as now)
insert into {jobs} as j (name, key, priority, run_at, scheduled_at, created_at, parameters, options, schedule)
select %(name)s, %(key)s, %(priority)s, due.at, coalesce(%(scheduled_at)s::timestamptz, due.at), due.now,
       %(parameters)s::jsonb, %(options)s, %(schedule)s
from (
    select c.now, coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second', c.now) as at
    from clock c
) due
where %(name)s in {shared_names} or (
    -- Kinds never mix under one name, so its first row with a key tells (see insert.sql).
    select (k.schedule is null) = (%(schedule)s::text is null) from {jobs} k
    where k.name = %(name)s and k.key is not null order by k.name, k.key limit 1
) is not false
on conflict (name, key) where key is not null do nothing
returning {job_columns}, pg_current_xact_id()::text::bigint as transaction
