-- What any user may see of the server: the settings that durability, vacuum and connections depend on.
select current_setting('server_version') as version,
       pg_is_in_recovery() as standby,
       current_setting('default_transaction_read_only')::boolean as read_only,
       current_setting('fsync')::boolean as fsync,
       current_setting('full_page_writes')::boolean as full_page_writes,
       current_setting('synchronous_commit') as synchronous_commit,
       current_setting('synchronous_standby_names') <> '' as synchronous_standbys,
       current_setting('autovacuum')::boolean as autovacuum,
       current_setting('track_counts')::boolean as track_counts,
       current_setting('max_connections')::integer as max_connections,
       current_setting('superuser_reserved_connections')::integer
           + coalesce(current_setting('reserved_connections', true), '0')::integer as reserved,
       (select sum(numbackends) from pg_stat_database)::integer as connected,
       case when r.rolsuper then -1 else d.datconnlimit end as database_limit,
       pg_stat_get_db_numbackends(d.oid) as database_connected,
       case when r.rolsuper then -1 else r.rolconnlimit end as role_limit,
       (select count(*) from pg_stat_activity a where a.usesysid = r.oid) as role_connected
from pg_database d
cross join pg_roles r
where d.datname = current_database() and r.rolname = session_user
