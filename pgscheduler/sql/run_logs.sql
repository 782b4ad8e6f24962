-- The log lines of one run, in order.
select l.at, l.level, l.event, l.fields from {run_logs} l
where l.job_id = %(job)s and l.token = %(token)s
order by l.at
