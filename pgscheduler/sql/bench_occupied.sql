-- Is there a job or a line of history under this prefix?
select exists (select from {jobs}) or exists (select from {runs})
