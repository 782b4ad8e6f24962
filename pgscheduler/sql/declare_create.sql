-- Store recurring jobs that do not exist yet. Those that do, and those whose name is of one-time jobs, do not come back.
with clock as materialized (select {now}() as now)
insert into {jobs} as j (name, key, state, priority, run_at, scheduled_at, created_at, parameters, options, schedule)
select g.name, g.key, case when g.paused then 'paused' else 'pending' end, g.priority, g.run_at, g.scheduled_at, c.now,
       g.parameters::jsonb, g.options, g.schedule
from json_to_recordset(%(jobs)s::json) as g(
         name text, key text, paused boolean, priority smallint, run_at timestamptz, scheduled_at timestamptz,
         parameters text, options text, schedule text)
cross join clock c
where g.name in {shared_names} or (
    -- Kinds never mix under one name, so its first row with a key tells (see insert.sql).
    select k.schedule is null from {jobs} k
    where k.name = g.name and k.key is not null order by k.name, k.key limit 1
) is not true
on conflict (name, key) where key is not null do nothing
returning j.id, j.name, j.key
