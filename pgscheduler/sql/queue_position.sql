-- The place of a pending job in the order of claims, from 1: the due ones by priority and time, and behind them the
-- one-time jobs of the future, by time. No row if it is not pending.
with clock as materialized (select {now}() as now),
target as materialized (
    select j.id, j.priority, j.run_at, j.run_at <= c.now as due
    from {jobs} j cross join clock c
    where j.id = coalesce(%(id)s::bigint, (select k.id from {jobs} k where k.name = %(name)s and k.key = %(key)s))
      and j.state = 'pending'
)
select 1
    + (select count(*) from {jobs} j
       where j.state = 'pending' and j.run_at <= (select now from clock)
         and (not t.due or (j.priority, j.run_at, j.id) < (t.priority, t.run_at, t.id)))
    + (select count(*) from {jobs} j
       where not t.due and j.state = 'pending' and j.run_at > (select now from clock) and j.schedule is null
         and (j.run_at, j.priority, j.id) < (t.run_at, t.priority, t.id)) as place
from target t
