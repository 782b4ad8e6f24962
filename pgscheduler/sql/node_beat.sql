-- Say that this node is alive, and which names it can run.
insert into {nodes} as n (id, host, pid, version, slots, names, started_at, heartbeat_at, no_heartbeat_timeout)
values (%(id)s, %(host)s, %(pid)s, %(version)s, %(slots)s, %(names)s, {now}(), {now}(),
        %(timeout)s * interval '1 second')
on conflict (id) do update
    set names = excluded.names, heartbeat_at = excluded.heartbeat_at, stopped_at = null,
        no_heartbeat_timeout = excluded.no_heartbeat_timeout
