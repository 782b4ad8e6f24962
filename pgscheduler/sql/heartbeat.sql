-- Renew the claims of this node, and tell which still are its own and which are asked to stop.
-- A row that somebody holds locked (the job's own transaction, say) is left alone: it is not lost, but not renewed.
with given as materialized (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g(id, token)
),
free as materialized (
    select f.at
    from given g
    cross join lateral (
        select j.ctid as at from {jobs} j where j.id = g.id and j.token = g.token for update skip locked
    ) f
),
beaten as (
    -- By address, which spares a look-up. A version that came after this statement began is not found by it: such a row
    -- is among the others, and renewed when it is asked for again.
    update {jobs} j set heartbeat_at = (select {now}()) where j.ctid = any (array(select at from free))
    returning j.id, j.token, j.cancel_requested
)
select b.id, b.token, b.cancel_requested, true from beaten b
union all
select g.id, g.token, mine.cancel_requested, false
from (select * from given where id not in (select id from beaten)) g
cross join lateral (
    select j.cancel_requested from {jobs} j where j.id = g.id and j.token = g.token
    offset 0  -- one look-up each, whatever the planner believes
) mine
