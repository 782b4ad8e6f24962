-- Which of these names belong to recurring jobs alone.
select given.name
from unnest(%(names)s::text[]) as given(name)
cross join lateral (
    select j.schedule from {jobs} j
    where j.name = given.name and j.key is not null order by j.name, j.key limit 1
) first
where first.schedule is not null and given.name not in {shared_names}
