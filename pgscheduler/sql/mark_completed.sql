-- Inside the job's own transaction: this run's work is done. Fenced; no row means that the claim was lost.
update {jobs} j
set completed_at = {now}(), result = %(result)s::jsonb
where j.id = %(id)s and j.token = %(token)s and j.completed_at is null
returning j.id
