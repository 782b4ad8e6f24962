-- Record one-time jobs that completed and returned nothing: the job's row becomes a line of history.
with given as materialized (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(started)s::float8[], %(ended)s::float8[])
        as g(id, token, started, ended)
),
done as (
    delete from {jobs} j using given g
    where j.id = g.id and j.token = g.token
    returning j.*, g.started, g.ended
),
recorded as (
    insert into {runs} (job_id, token, scheduled_at, started_at, finished_at, node_id, attempt, outcome,
                        name, key, parameters, options, progress)
    select d.id, d.token, d.scheduled_at, d.claimed_at + d.started * interval '1 second',
           d.claimed_at + d.ended * interval '1 second', d.node_id, d.failures + d.stalls + 1, 'completed',
           d.name, d.key, d.parameters, d.options, d.progress
    from done d
)
select count(*), case when count(*) < cardinality(%(ids)s::bigint[]) then array_agg(array[d.id, d.token]) end
from done d
