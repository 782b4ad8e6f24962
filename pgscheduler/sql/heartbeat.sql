-- Renew the claims of this node, and tell which still are its own and which are asked to stop.
-- A row that somebody holds locked (the job's own transaction, say) is left alone: it is not lost, but not renewed.
with given as materialized (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g(id, token)
),
free as materialized (
    select f.id
    from given g
    cross join lateral (
        select j.id from {jobs} j where j.id = g.id and j.token = g.token for update skip locked
    ) f
),
beaten as (
    update {jobs} j set heartbeat_at = {now}() where j.id = any (array(select id from free))  -- by id: see finish.sql
)
select g.id, g.token, mine.cancel_requested, g.id in (select id from free)
from given g
cross join lateral (
    select j.cancel_requested from {jobs} j where j.id = g.id and j.token = g.token
    offset 0  -- one look-up each, whatever the planner believes
) mine
