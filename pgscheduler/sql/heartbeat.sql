-- Renew the claims of this node, and tell which still are its own and which are asked to stop.
-- A row that somebody holds locked (the job's own transaction, say) is left alone: it is not lost.
with given as materialized (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g(id, token)
),
free as materialized (
    select j.ctid from given g join {jobs} j on j.id = g.id and j.token = g.token
    for update of j skip locked
),
beaten as (
    update {jobs} j set heartbeat_at = {now}() where j.ctid = any (array(select ctid from free))
)
select j.id, j.token, j.cancel_requested from given g join {jobs} j on j.id = g.id and j.token = g.token
