-- Live jobs, newest first, filtered; each filter counts only if it is given.
select * from {jobs} j
where (%(name)s::text is null or j.name = %(name)s)
  and (%(key)s::text is null or j.key = %(key)s)
  and (%(state)s::text is null or j.state = %(state)s)
  and (%(recurring)s::boolean is null or (j.schedule is not null) = %(recurring)s)
order by j.id desc
limit %(limit)s offset %(offset)s
