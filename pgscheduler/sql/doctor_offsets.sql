-- How far from UTC PostgreSQL believes these zones to be at these instants, in seconds; null for a zone it does not know.
with known as materialized (
    select t.name from pg_timezone_names t where t.name = any (%(zones)s::text[])
)
select z.name as zone, m.at,
       case when k.name is not null
            then extract(epoch from (m.at at time zone k.name) - (m.at at time zone 'UTC'))::integer end as "offset"
from unnest(%(zones)s::text[]) as z(name)
left join known k on k.name = z.name
cross join unnest(%(instants)s::timestamptz[]) as m(at)
order by z.name, m.at
