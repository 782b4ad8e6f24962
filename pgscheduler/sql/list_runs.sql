-- History, newest first, filtered; each filter counts only if it is given.
select r.* from {runs} r
where (%(job)s::bigint is null or r.job_id = %(job)s)
  and (%(name)s::text is null or r.name = %(name)s)
  and (%(key)s::text is null or r.key = %(key)s)
  and (%(outcome)s::text is null or r.outcome = %(outcome)s)
  and (%(token)s::bigint is null or r.token = %(token)s)
  and (%(occurrence)s::timestamptz is null or (r.token is null and r.scheduled_at = %(occurrence)s))  -- nothing ran
  and (%(since)s::timestamptz is null or r.finished_at >= %(since)s)
  and (%(until)s::timestamptz is null or r.finished_at < %(until)s)
  and (%(node)s::uuid is null or r.node_id = %(node)s)
  and (%(template)s::text is null or (strpos(r.options, '"job_template":') > 0
                                      and r.options::json -> 'metadata' ->> 'job_template' = %(template)s))
order by r.finished_at desc, r.attempt desc
limit %(limit)s offset %(offset)s
