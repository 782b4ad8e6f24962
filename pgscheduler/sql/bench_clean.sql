-- Forget the jobs and the history of one name: what a benchmark left.
with jobs as (delete from {jobs} where name = %(name)s) delete from {runs} where name = %(name)s
