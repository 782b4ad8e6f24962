-- Before a run that makes up for missed occurrences: the row says for which of them it is, so that its next attempt is
-- for the same, and the others are on record. Fenced; no row means that the claim was lost.
with clock as materialized (select {now}() as now),
moved as (
    update {jobs} j
    set scheduled_at = %(occurrence)s::timestamptz
    where j.id = %(id)s and j.token = %(token)s
    returning j.*
),
recorded as (
    insert into {runs} (job_id, token, scheduled_at, started_at, finished_at, node_id, attempt, outcome,
                        name, key, schedule, parameters, options, result, reason)
    select m.id, null, s.scheduled_at, null, (select now from clock), m.node_id, 0, 'skipped',
           m.name, m.key, m.schedule, m.parameters, m.options, s.result, s.reason
    from moved m
    cross join lateral json_to_recordset(%(skipped)s::json) as s(scheduled_at timestamptz, reason text, result jsonb)
)
select m.id from moved m
