-- Write what running jobs said of themselves so far (progress and log lines), fenced by their tokens.
with held as materialized (
    select g.*, f.claimed_at
    from json_to_recordset(%(notes)s::json) as g(id bigint, token bigint, progress jsonb, logs json)
    cross join lateral (
        select j.claimed_at from {jobs} j where j.id = g.id and j.token = g.token for update
    ) f
),
owned as (
    update {jobs} j
    set progress = coalesce((select h.progress from held h where h.id = j.id and h.token = j.token), j.progress)
    where j.id = any (array(select h.id from held h where h.progress is not null))  -- by id: see finish.sql
),
logged as (
    insert into {run_logs} (job_id, token, at, level, event, fields)
    select h.id, h.token, h.claimed_at + l.at * interval '1 second', l.level, l.event, l.fields
    from held h
    cross join lateral json_to_recordset(h.logs) as l(at float8, level text, event text, fields jsonb)
)
select array_agg(array[h.id, h.token]) from held h
