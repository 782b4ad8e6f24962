-- Record one-time jobs that completed and returned nothing: the job's row becomes a line of history.
-- Each job is looked up by id and then checked against its own token. A join would leave the planner to choose, and
-- what it believes of a table that is empty one minute and full the next is often wrong. So the place of a job in the
-- arrays is found by binary search, which is what width_bucket does: `ids` must be sorted, and hold no id twice.
-- A row that somebody holds locked is waited for, but not long: then this fails, nothing is written, and finish.sql
-- writes the others. To lock all rows first and pass over that one here would cost a fifth more for every job.
with done as (
    delete from {jobs} j
    where (select set_config('lock_timeout', '250ms', true) is not null)  -- once, before the first row, for this alone
      and j.id = any (%(ids)s::bigint[])
      and j.token = (%(tokens)s::bigint[])[width_bucket(j.id, %(ids)s::bigint[])]
    returning j.id, j.token, j.scheduled_at, j.claimed_at, j.node_id, j.failures, j.stalls, j.name, j.key, j.parameters,
              j.options, j.progress, width_bucket(j.id, %(ids)s::bigint[]) as place
),
recorded as (
    insert into {runs} (job_id, token, scheduled_at, started_at, finished_at, node_id, attempt, outcome,
                        name, key, parameters, options, progress)
    select d.id, d.token, d.scheduled_at,
           d.claimed_at + (%(started)s::float8[])[d.place] * interval '1 second',
           d.claimed_at + (%(ended)s::float8[])[d.place] * interval '1 second',
           d.node_id, d.failures + d.stalls + 1, 'completed', d.name, d.key, d.parameters, d.options, d.progress
    from done d
)
select count(*), case when count(*) < cardinality(%(ids)s::bigint[]) then array_agg(array[d.id, d.token]) end
from done d
