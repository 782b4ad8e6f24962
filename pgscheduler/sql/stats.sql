-- Live jobs by name and state, with the age of the oldest due one.
select j.name, j.state, count(*), count(*) filter (where j.run_at <= c.now and j.state = 'pending') as due,
       extract(epoch from max(c.now - j.run_at) filter (where j.run_at <= c.now and j.state = 'pending'))::float8 as oldest
from {jobs} j cross join (select {now}() as now) c
group by j.name, j.state
order by j.name, j.state
