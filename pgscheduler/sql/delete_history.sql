-- Forget what a job did: its runs, and what they logged.
with forgotten as (delete from {runs} r where r.job_id = %(id)s)
delete from {run_logs} l where l.job_id = %(id)s
