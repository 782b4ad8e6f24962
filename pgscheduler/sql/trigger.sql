-- Make a job due now. For a recurring one this is an occurrence of its own, so no other is started early;
-- a paused one runs once and is paused again.
with clock as materialized (select {now}() as now)
update {jobs} j
set run_at = least(j.run_at, c.now),
    scheduled_at = case when j.schedule is not null and j.scheduled_at > c.now then c.now else j.scheduled_at end,
    after_run = case when j.state = 'paused' then 'pause' else j.after_run end,
    state = 'pending'
from clock c
where j.id = coalesce(%(id)s::bigint, (select k.id from {jobs} k where k.name = %(name)s and k.key = %(key)s))
  and j.state <> 'running'
returning j.*
