-- A hint to all nodes of this prefix: `due` (look for work) or `cancel` (look at your claims).
-- It need not survive a crash, so it need not wait for the disk. Not as the session's setting: behind a pooler the
-- session is somebody else's next, whose commits would then not be durable.
select pg_notify({channel}, %(hint)s), set_config('synchronous_commit', 'off', true)
