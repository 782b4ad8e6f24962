-- Which of these transactions have ended: true committed, false rolled back, null still open.
-- After a failover (or a crash) the server may not have come to a number yet, and would refuse to speak of it.
select x.id, case when x.id::text::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) then null
                  else case pg_xact_status(x.id::text::xid8) when 'committed' then true when 'aborted' then false end
             end
from unnest(%(transactions)s::bigint[]) as x(id)
