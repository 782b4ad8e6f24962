-- Which of these transactions have ended: true committed, false rolled back, null still open.
select x.id, case pg_xact_status(x.id::text::xid8) when 'committed' then true when 'aborted' then false end
from unnest(%(transactions)s::bigint[]) as x(id)
