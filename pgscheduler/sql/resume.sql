-- Resume a paused job. A recurring one goes on with its next occurrence from now, not with an old overdue one; unless
-- its own transaction has completed that, and only the record is missing.
update {jobs} j
set state = case when j.state = 'paused' then 'pending' else j.state end,
    after_run = case when j.after_run = 'pause' then null else j.after_run end,
    run_at = case when j.state = 'paused' and j.completed_at is null then coalesce(%(run_at)s, j.run_at)
                  else j.run_at end,
    scheduled_at = case when j.state = 'paused' and j.completed_at is null then coalesce(%(scheduled_at)s, j.scheduled_at)
                        else j.scheduled_at end,
    failures = case when j.state = 'paused' and %(run_at)s is not null then 0 else j.failures end,
    stalls = case when j.state = 'paused' and %(run_at)s is not null then 0 else j.stalls end
where j.id = %(id)s::bigint and j.schedule is not distinct from %(schedule)s
returning *
