-- Nodes, newest first; `alive` by the database's clock.
select n.id, n.host, n.pid, n.version, n.slots, n.names, n.started_at, n.heartbeat_at, n.stopped_at,
       n.stopped_at is null and n.heartbeat_at > {now}() - n.no_heartbeat_timeout as alive,
       (select count(*) from {jobs} j where j.state = 'running' and j.node_id = n.id) as running
from {nodes} n
order by n.started_at desc
