-- Write what running jobs said of themselves so far (progress and log lines), fenced by their tokens.
with given as materialized (
    select * from json_to_recordset(%(notes)s::json) as g(id bigint, token bigint, progress jsonb, logs json)
),
owned as (
    update {jobs} j set progress = coalesce(g.progress, j.progress)
    from given g
    where j.id = g.id and j.token = g.token
    returning j.id, j.token, j.claimed_at
),
logged as (
    insert into {run_logs} (job_id, token, at, level, event, fields)
    select o.id, o.token, o.claimed_at + l.at * interval '1 second', l.level, l.event, l.fields
    from owned o join given g on g.id = o.id and g.token = o.token
    cross join lateral json_to_recordset(g.logs) as l(at float8, level text, event text, fields jsonb)
)
select array_agg(array[id, token]) from owned
