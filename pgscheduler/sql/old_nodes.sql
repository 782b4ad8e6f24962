-- Forget nodes that have been silent for longer than any orphan is waited for.
delete from {nodes} n where n.heartbeat_at < {now}() - %(timeout)s * interval '1 second'
