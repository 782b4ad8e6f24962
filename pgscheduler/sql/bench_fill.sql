-- Store `count` due jobs of one name, for pgbench to claim.
with clock as materialized (select {now}() as now)
insert into {jobs} (name, priority, run_at, scheduled_at, created_at)
select %(name)s, 5, now, now, now from clock, generate_series(1, %(count)s)
