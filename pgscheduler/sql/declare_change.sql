-- Give recurring jobs that are not running another definition. An unchanged schedule keeps its next occurrence, as in
-- upsert.sql; those that run, or go as soon as they have run, do not come back.
update {jobs} j
set priority = g.priority,
    parameters = g.parameters::jsonb,
    options = g.options,
    schedule = g.schedule,
    run_at = case when j.schedule = g.schedule then j.run_at else g.run_at end,
    scheduled_at = case when j.schedule = g.schedule then j.scheduled_at else g.scheduled_at end,
    failures = case when j.schedule = g.schedule then j.failures else 0 end,
    stalls = case when j.schedule = g.schedule then j.stalls else 0 end,
    cancel_requested = j.cancel_requested and j.schedule = g.schedule
from json_to_recordset(%(jobs)s::json) as g(
         id bigint, priority smallint, run_at timestamptz, scheduled_at timestamptz, parameters text, options text,
         schedule text)
where j.id = g.id and j.schedule is not null and j.state <> 'running' and j.completed_at is null
  and j.after_run is distinct from 'delete'
returning j.id
