-- Store a template. No row comes back if its code is taken.
with clock as materialized (select {now}() as now)
insert into {templates} (code, name, handler, active, display_order, retries, timeout, parameters_schema, created_at, updated_at)
select %(code)s, %(name)s, %(handler)s, %(active)s, %(display_order)s, %(retries)s,
       %(timeout)s::float8 * interval '1 second', %(parameters_schema)s::json, c.now, c.now
from clock c
on conflict (code) do nothing
returning *
