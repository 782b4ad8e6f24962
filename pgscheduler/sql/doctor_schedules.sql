-- The different schedules of recurring jobs: of the first `names` names with a key, the first `sample` jobs each.
with recursive keyed as (
    (select j.name from {jobs} j where j.key is not null order by j.name, j.key limit 1)
    union all
    select (select j.name from {jobs} j where j.key is not null and j.name > k.name order by j.name, j.key limit 1)
    from keyed k
    where k.name is not null
)
select picked.schedule, min(picked.id) as id, min(picked.name) as name, count(*) as jobs
from (select k.name from keyed k where k.name is not null limit %(names)s) named
cross join lateral (
    select j.id, j.name, j.schedule from {jobs} j
    where j.name = named.name and j.key is not null
    order by j.name, j.key
    limit %(sample)s
) picked
where picked.schedule is not null
group by picked.schedule
