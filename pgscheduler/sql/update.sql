-- Change what is given of a job that is not running; the rest stays. An unchanged schedule keeps its next occurrence.
-- One that is deleted as soon as somebody sees to it, or whose work is done and waits for its record, is as good as
-- running. `known` is what its policies were when `options` was made from them.
with clock as materialized (select {now}() as now)
update {jobs} j
set priority = coalesce(%(priority)s::smallint, j.priority),
    parameters = case when %(parametrized)s::boolean then %(parameters)s::jsonb else j.parameters end,
    options = %(options)s::text,
    schedule = coalesce(%(schedule)s::text, j.schedule),
    (run_at, scheduled_at, failures, stalls, cancel_requested) = (
        -- Whatever was counted or asked for belonged to the occurrence that another time replaces, as in reschedule.sql.
        select case when g.moves then g.at else j.run_at end,
               case when g.moves then coalesce(%(scheduled_at)s::timestamptz, g.at) else j.scheduled_at end,
               case when g.moves then 0 else j.failures end,
               case when g.moves then 0 else j.stalls end,
               j.cancel_requested and not g.moves
        from (
            select due.at, due.at is not null and (%(schedule)s::text is null or j.schedule <> %(schedule)s::text) as moves
            from (
                select coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second') as at from clock c
            ) due
        ) g
    )
where j.id = %(id)s::bigint and j.state <> 'running' and j.after_run is distinct from 'delete' and j.completed_at is null
  and j.options is not distinct from %(known)s::text
returning j.*
