-- Live jobs by name and state, with the age of the oldest due one.
with clock as materialized (select {now}() as now)
select j.name, j.state, count(*), count(*) filter (where j.run_at <= c.now and j.state = 'pending') as due,
       extract(epoch from max(c.now - j.run_at) filter (where j.run_at <= c.now and j.state = 'pending'))::float8 as oldest
from {jobs} j cross join clock c
group by j.name, j.state
order by j.name, j.state
