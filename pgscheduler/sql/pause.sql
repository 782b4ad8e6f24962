-- Pause a job: never claimed until resumed; a run in progress ends first.
update {jobs} j
set state = case when j.state = 'running' then 'running' else 'paused' end,
    after_run = case when j.state = 'running' and j.after_run is distinct from 'delete' then 'pause' else j.after_run end
where j.id = coalesce(%(id)s::bigint, (select k.id from {jobs} k where k.name = %(name)s and k.key = %(key)s))
returning *
