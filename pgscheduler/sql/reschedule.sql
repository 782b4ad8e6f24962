-- Give a job that is not running another time, or another schedule. One that is deleted as soon as somebody sees to it,
-- or whose work is done and waits for its record, is as good as running.
with clock as materialized (select {now}() as now)
update {jobs} j
set run_at = coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second', c.now),
    scheduled_at = coalesce(%(scheduled_at)s::timestamptz, %(run_at)s::timestamptz,
                            c.now + %(delay)s::float8 * interval '1 second', c.now),
    schedule = coalesce(%(schedule)s::text, j.schedule),
    failures = 0,
    stalls = 0,
    cancel_requested = false
from clock c
where j.id = %(id)s::bigint and j.state <> 'running' and j.after_run is distinct from 'delete' and j.completed_at is null
returning j.*
