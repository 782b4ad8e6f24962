-- History, newest first, filtered; each filter counts only if it is given.
select r.* from {runs} r
where (%(job)s::bigint is null or r.job_id = %(job)s)
  and (%(name)s::text is null or r.name = %(name)s)
  and (%(key)s::text is null or r.key = %(key)s)
  and (%(outcome)s::text is null or r.outcome = %(outcome)s)
  and (%(token)s::bigint is null or r.token = %(token)s)
  and (%(since)s::timestamptz is null or r.finished_at >= %(since)s)
order by r.finished_at desc, r.attempt desc
limit %(limit)s offset %(offset)s
