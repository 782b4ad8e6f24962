-- How many lines of history there are, filtered as in list_runs.sql.
select count(*) from {runs} r
where (%(job)s::bigint is null or r.job_id = %(job)s)
  and (%(name)s::text is null or r.name = %(name)s)
  and (%(key)s::text is null or r.key = %(key)s)
  and (%(outcome)s::text is null or r.outcome = %(outcome)s)
  and (%(since)s::timestamptz is null or r.finished_at >= %(since)s)
  and (%(until)s::timestamptz is null or r.finished_at < %(until)s)
  and (%(node)s::uuid is null or r.node_id = %(node)s)
  and (%(template)s::text is null or (strpos(r.options, '"job_template":') > 0
                                      and r.options::json -> 'metadata' ->> 'job_template' = %(template)s))
