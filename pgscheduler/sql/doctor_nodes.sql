-- How many nodes live, what they can run at once, and whether any job waits for one. The table of nodes is small.
select count(*) filter (where n.alive) as alive,
       coalesce(sum(n.slots) filter (where n.alive), 0)::bigint as slots,
       count(*) filter (where not n.alive and n.stopped_at is null) as silent,
       extract(epoch from {now}() - max(n.heartbeat_at))::float8 as last_heard,
       exists (select from {jobs} j where j.state = 'pending')
           or exists (select from {jobs} j where j.state = 'running') as work
from (
    select m.*, m.stopped_at is null and m.heartbeat_at > {now}() - m.no_heartbeat_timeout as alive from {nodes} m
) n
