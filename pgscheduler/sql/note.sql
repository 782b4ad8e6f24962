-- Write what running jobs said of themselves so far (progress and log lines), fenced by their tokens.
-- Locked rows, and the answer: see finish.sql.
with given as materialized (
    select * from json_to_recordset(%(notes)s::json) as g(id bigint, token bigint, progress jsonb, logs json)
),
held as materialized (
    select g.*, f.claimed_at
    from given g
    cross join lateral (
        select j.claimed_at from {jobs} j where j.id = g.id and j.token = g.token for update skip locked
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
select array_agg(array[h.id, h.token]),
       case when count(*) < (select count(*) from given) then (
           select array_agg(array[g.id, g.token])
           from given g
           cross join lateral (select from {jobs} j where j.id = g.id and j.token = g.token offset 0) ours
       ) end
from held h
