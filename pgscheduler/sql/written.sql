-- Which of these runs are in history already: their outcome was written, only the answer was lost.
select r.job_id, r.token from {runs} r
join unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g(id, token) on g.id = r.job_id and g.token = r.token
