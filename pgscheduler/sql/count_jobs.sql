-- How many live jobs there are, filtered as in list_jobs.sql.
select count(*) from {jobs} j
where (%(name)s::text is null or j.name = %(name)s)
  and (%(key)s::text is null or j.key = %(key)s)
  and (%(state)s::text is null or j.state = %(state)s)
  and (%(recurring)s::boolean is null or (j.schedule is not null) = %(recurring)s)
  and (%(due)s::boolean is null or (j.state = 'pending' and j.run_at <= {now}()) = %(due)s)
  and (%(search)s::text is null or strpos(lower(j.name), lower(%(search)s)) > 0 or strpos(lower(j.key), lower(%(search)s)) > 0)
  and (%(template)s::text is null or (strpos(j.options, '"job_template":') > 0
                                      and j.options::json -> 'metadata' ->> 'job_template' = %(template)s))
