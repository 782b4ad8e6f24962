-- How many jobs are due, `most` at most, and the age of the oldest in seconds. Of the first `levels` priorities.
with recursive
clock as materialized (select {now}() as now),
found as (
    select (select min(j.priority) from {jobs} j where j.state = 'pending') as priority, 1 as level
    union all
    select (select min(j.priority) from {jobs} j where j.state = 'pending' and j.priority > f.priority), f.level + 1
    from found f
    where f.priority is not null and f.level < %(levels)s
),
levels as materialized (select priority from found where priority is not null)
select (
    select count(*) from (
        select from levels l
        cross join lateral (
            select from {jobs} j
            where j.state = 'pending' and j.priority = l.priority and j.run_at <= (select now from clock)
            order by j.run_at, j.id
            limit %(most)s
        ) due
        limit %(most)s
    ) counted
) as due, (
    select extract(epoch from (select now from clock) - min(first.run_at))::float8
    from levels l
    cross join lateral (
        select j.run_at from {jobs} j
        where j.state = 'pending' and j.priority = l.priority and j.run_at <= (select now from clock)
        order by j.run_at, j.id
        limit 1
    ) first
) as oldest
