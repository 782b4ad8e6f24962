-- Live jobs by name and state, and how many are due: of the `most` oldest, which are all of them if there are fewer.
with clock as materialized (select {now}() as now)
select j.name, j.state, count(*) as jobs, count(*) filter (where j.state = 'pending' and j.run_at <= c.now) as due
from (select name, state, run_at from {jobs} order by id limit %(most)s) j
cross join clock c
group by j.name, j.state
