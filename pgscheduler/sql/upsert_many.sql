-- Store many jobs at once, keyed or not; those that run or are of the other kind do not come back.
with clock as materialized (select {now}() as now),
given as materialized (
    select * from json_to_recordset(%(jobs)s::json) as g(
        id bigint, name text, key text, priority smallint, run_at timestamptz, delay float8,
        scheduled_at timestamptz, parameters jsonb, options text, schedule text)
),
-- Kinds never mix under one name, so its first row with a key tells which one is refused (see upsert.sql). Looked for once
-- per name: each job's own look would walk over all that this statement has stored before it.
refused as materialized (
    select n.name, first.schedule is not null as once
    from (select distinct name from given) n
    cross join lateral (
        select k.schedule from {jobs} k
        where k.name = n.name and k.key is not null order by k.name, k.key limit 1
    ) first
    where n.name not in {shared_names}
)
insert into {jobs} as j (id, name, key, priority, run_at, scheduled_at, created_at, parameters, options, schedule)
select coalesce(g.id, nextval(pg_get_serial_sequence(%(table)s, 'id'))), g.name, g.key, g.priority, due.at,
       coalesce(g.scheduled_at, due.at), c.now, g.parameters, g.options, g.schedule
from given g
cross join clock c
cross join lateral (select coalesce(g.run_at, c.now + g.delay * interval '1 second', c.now) as at) due
where (g.name, g.schedule is null) not in (select r.name, r.once from refused r)
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
returning j.id, j.name, j.key
