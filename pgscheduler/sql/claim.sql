-- Claim up to `slots` due jobs of the names this node knows: smallest priority first, then the longest due.
-- Each priority is scanned from its mark (where the last claim ended), so that dead index entries before it
-- cost nothing; with `everything`, from the start, over all priorities that a loose index scan finds.
-- Of the jobs whose node died under them, once or more often, no more than `once` and `often`: see the dispatcher.
with recursive
clock as materialized (
    -- A claim that a crash forgets only means that the job runs again, so its commit need not be flushed.
    select {now}() as now, %(until)s::timestamptz as until, set_config('synchronous_commit', 'off', true)
),
found as (
    select (select min(j.priority) from {jobs} j where j.state = 'pending') as priority
    where %(everything)s::boolean
    union all
    select (select min(j.priority) from {jobs} j where j.state = 'pending' and j.priority > f.priority)
    from found f
    where f.priority is not null
),
levels as (
    select f.priority, '-infinity'::timestamptz as since from found f where f.priority is not null
    union all
    select * from unnest(%(priorities)s::smallint[], %(marks)s::timestamptz[])
    where not %(everything)s::boolean
),
due as materialized (
    select picked.ctid, picked.stalls
    from (select * from levels order by priority) l
    cross join lateral (
        select j.ctid, j.stalls
        from {jobs} j
        where j.state = 'pending'
          and j.priority = l.priority
          and j.run_at >= l.since
          and j.run_at <= (select least(now, until) from clock)
          and j.name = any (%(names)s::text[])
          and (j.stalls = 0 or (j.stalls = 1 and %(once)s::bigint > 0) or (j.stalls > 1 and %(often)s::bigint > 0))
        order by j.run_at, j.id
        limit %(slots)s::bigint
        for update skip locked
    ) picked
    limit %(slots)s::bigint
),
taken as (
    -- By address, not by id: the rows are locked, so they stay where they are, and no plan can go wrong.
    update {jobs} j
    set state = 'running',
        token = %(token)s::bigint,
        node_id = %(node)s::uuid,
        claimed_at = (select now from clock),
        heartbeat_at = null
    where j.ctid = any (array(
        select ctid from due where stalls = 0
        union all (select ctid from due where stalls = 1 limit %(once)s::bigint)
        union all (select ctid from due where stalls > 1 limit %(often)s::bigint)
    ))
    returning j.id, j.name, j.key, j.priority, j.run_at, j.scheduled_at, j.failures, j.stalls, j.schedule, j.options,
              j.parameters, j.cancel_requested, j.completed_at, j.claimed_at
)
select t.id, t.name, t.key, t.priority, t.run_at, t.scheduled_at, t.failures, t.stalls, t.schedule, t.options,
       t.parameters::text, t.cancel_requested, t.completed_at is not null, t.claimed_at
from taken t
order by t.priority, t.run_at, t.id
