-- Delete runs beyond the newest `completed` and `failed` (null: no limit) of each recurring job, and of all one-time jobs
-- of a name together, with their log lines. Never what ended within the window, in which a finished job still answers.
with clock as materialized (select {now}() - %(window)s * interval '1 second' as bound),
counted as materialized (
    select r.name, coalesce(case when r.schedule is not null then r.key end, '') as key, r.outcome = 'completed' as good,
           count(*) - case when r.outcome = 'completed' then %(completed)s::bigint else %(failed)s::bigint end as excess,
           row_number() over () as number
    from {runs} r
    where r.outcome in ('completed', 'failed', 'timed_out', 'stalled')
    group by 1, 2, 3
),
lined_up as (
    select r.tableoid as part, r.ctid as place, c.excess,
           row_number() over (partition by c.number order by r.finished_at) as place_in_line
    from counted c
    join {runs} r on r.name = c.name and coalesce(case when r.schedule is not null then r.key end, '') = c.key
                 and (r.outcome = 'completed') = c.good
    where c.excess > 0  -- not if it is null
      and r.outcome in ('completed', 'failed', 'timed_out', 'stalled')
      and r.finished_at < (select bound from clock)
),
doomed as materialized (
    select l.part, l.place from lined_up l where l.place_in_line <= l.excess limit %(batch)s
),
deleted as (
    -- A line of history is never changed, so it stays where it was found.
    delete from {runs} r using doomed d where r.tableoid = d.part and r.ctid = d.place
    returning r.job_id, r.token
),
forgotten as (
    delete from {run_logs} l using deleted d where l.job_id = d.job_id and l.token = d.token
)
select count(*) from deleted
