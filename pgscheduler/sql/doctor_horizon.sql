-- Who keeps vacuum from removing dead rows here: the oldest first, with their age in seconds and in transactions.
-- Other roles' sessions show their age only to a member of pg_read_all_stats; such a one is counted as hidden.
select h.kind, h.who, h.state, extract(epoch from {now}() - h.since)::float8 as seconds, h.transactions
from (
    select 'session' as kind, 'pid ' || a.pid || ', ' || a.usename || coalesce(', ' || nullif(a.application_name, ''), '') as who,
           a.state, a.xact_start as since, greatest(age(a.backend_xmin), age(a.backend_xid)) as transactions
    from pg_stat_activity a
    where a.datname = current_database() and a.pid <> pg_backend_pid()
      and a.backend_type is distinct from 'autovacuum worker'  -- its own snapshot holds nothing back
      and (a.backend_xmin is not null or a.backend_xid is not null)
    union all
    select 'hidden session', 'pid ' || a.pid || coalesce(', ' || a.usename, ''), null, null, null
    from pg_stat_activity a
    where a.datname = current_database() and a.query = '<insufficient privilege>'
    union all
    select 'prepared transaction', p.gid || ', ' || p.owner, 'prepared', p.prepared, age(p.transaction)
    from pg_prepared_xacts p
    where p.database = current_database()
    union all
    select 'replication slot', s.slot_name, case when s.active then 'active' else 'inactive' end, null, age(s.xmin)
    from pg_replication_slots s
    where s.xmin is not null
    union all
    select 'standby', coalesce(nullif(r.application_name, ''), r.client_addr::text), r.state, null, age(r.backend_xmin)
    from pg_stat_replication r
    where r.backend_xmin is not null
) h
order by h.since nulls last, h.transactions desc nulls last
