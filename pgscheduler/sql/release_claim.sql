-- Give back what a claim took whose answer never arrived: nothing of it was started.
update {jobs} j
set state = case when j.after_run = 'pause' then 'paused' else 'pending' end, token = null, claimed_at = null,
    heartbeat_at = null, node_id = null
where j.state = 'running' and j.node_id = %(node)s and j.token = %(token)s
returning j.id
