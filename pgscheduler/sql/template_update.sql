-- Change a template in what `changes`, a JSON object, holds; the rest stays. Two updates of different fields both count.
with clock as materialized (select {now}() as now),
asked as materialized (select %(changes)s::json as changes)
update {templates} t
set name = coalesce(a.changes ->> 'name', t.name),
    handler = coalesce(a.changes ->> 'handler', t.handler),
    active = coalesce((a.changes ->> 'active')::boolean, t.active),
    display_order = coalesce((a.changes ->> 'display_order')::integer, t.display_order),
    retries = coalesce((a.changes ->> 'retries')::integer, t.retries),
    -- These two may be set to null; `->` tells a JSON null from what was not given.
    timeout = case when a.changes -> 'timeout' is null then t.timeout
                   else (a.changes ->> 'timeout')::float8 * interval '1 second' end,
    parameters_schema = case when a.changes -> 'parameters_schema' is null then t.parameters_schema
                             else (a.changes ->> 'parameters_schema')::json end,
    updated_at = c.now
from clock c, asked a
where t.code = %(code)s
returning t.*
