-- The last line of history of a one-time job that has left the live table.
select r.* from {runs} r
where r.job_id = %(id)s::bigint
   or (%(id)s::bigint is null and r.name = %(name)s and r.key = %(key)s
       and r.finished_at > {now}() - %(window)s * interval '1 second')
order by r.finished_at desc, r.attempt desc
limit 1
