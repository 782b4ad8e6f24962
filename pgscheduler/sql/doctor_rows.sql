-- Rows that break a rule which every statement keeps: of `sample` running jobs, the `sample` longest due of the first
-- `levels` priorities, and the `sample` latest runs. One line per broken rule.
with recursive
clock as materialized (select {now}() as now),
found as (
    select (select min(j.priority) from {jobs} j where j.state = 'pending') as priority
    union all
    select (select min(j.priority) from {jobs} j where j.state = 'pending' and j.priority > f.priority)
    from found f
    where f.priority is not null
),
running as materialized (
    select j.id, j.token, j.node_id, j.claimed_at, j.key, j.schedule
    from {jobs} j where j.state = 'running' order by j.id limit %(sample)s
),
pending as materialized (
    select picked.*
    from (select f.priority from found f where f.priority is not null limit %(levels)s) l
    cross join lateral (
        select j.id, j.token, j.node_id, j.claimed_at, j.key, j.schedule
        from {jobs} j where j.state = 'pending' and j.priority = l.priority
        order by j.run_at, j.id
        limit %(sample)s
    ) picked
),
ended as materialized (
    select r.job_id as id, r.outcome, r.started_at, r.finished_at from {runs} r order by r.finished_at desc limit %(sample)s
),
broken as (
    select 'a running job without token, node or time of its claim' as rule, r.id from running r
    where r.token is null or r.node_id is null or r.claimed_at is null
    union all
    select 'a running job whose claim has its outcome in history already', r.id from running r
    where exists (select from {runs} h where h.job_id = r.id and h.token = r.token and h.finished_at >= r.claimed_at)
    union all
    select 'a waiting job with a claim', p.id from pending p
    where p.token is not null or p.node_id is not null or p.claimed_at is not null
    union all
    select 'a recurring job without a key', a.id from (select * from running union all select * from pending) a
    where a.schedule is not null and a.key is null
    union all
    select 'a run whose outcome is none', e.id from ended e where not e.outcome = any (%(outcomes)s::text[])
    union all
    select 'a run that ended before it started', e.id from ended e where e.finished_at < e.started_at
    union all
    select 'a run that ended in the future', e.id from ended e cross join clock c where e.finished_at > c.now + interval '1 minute'
)
select b.rule, count(*) as rows, (array_agg(b.id order by b.id))[1:3] as ids from broken b group by b.rule order by b.rule
