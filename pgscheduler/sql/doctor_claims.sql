-- Of the first `sample` running jobs those whose node is gone, or that are silent for longer than their node allows.
with clock as materialized (select {now}() as now),
running as materialized (
    select j.id, j.name, j.node_id, coalesce(j.heartbeat_at, j.claimed_at) as sign
    from {jobs} j where j.state = 'running' order by j.id limit %(sample)s
),
judged as (
    select r.id, r.name, r.node_id::text as node, extract(epoch from c.now - r.sign)::float8 as seconds,
           coalesce(extract(epoch from n.no_heartbeat_timeout)::float8, %(timeout)s) as timeout,
           n.id is not null and n.stopped_at is null and n.heartbeat_at > c.now - n.no_heartbeat_timeout as alive
    from running r
    cross join clock c
    left join {nodes} n on n.id = r.node_id
)
select * from judged j where not j.alive or j.seconds > j.timeout
order by j.seconds desc
