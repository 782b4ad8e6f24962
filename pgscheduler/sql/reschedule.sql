-- Give a job that is not running another time, or another schedule.
update {jobs} j
set run_at = coalesce(%(run_at)s::timestamptz, c.now + %(delay)s::float8 * interval '1 second', c.now),
    scheduled_at = coalesce(%(scheduled_at)s::timestamptz, %(run_at)s::timestamptz,
                            c.now + %(delay)s::float8 * interval '1 second', c.now),
    schedule = coalesce(%(schedule)s::text, j.schedule),
    failures = 0,
    stalls = 0,
    cancel_requested = false
from (select {now}() as now) c
where j.id = %(id)s::bigint and j.state <> 'running'
returning j.*
