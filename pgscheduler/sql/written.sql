-- What became of outcomes whose write got no answer: how history says that the claim's run ended, null if it says nothing,
-- and whether the claim still has its job.
select g.id, g.token, past.outcome, ours.id is not null
from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g(id, token)
left join lateral (
    select r.outcome from {runs} r where r.job_id = g.id and r.token = g.token limit 1
) past on true
left join lateral (
    select j.id from {jobs} j where j.id = g.id and j.token = g.token limit 1
) ours on true
