-- Constraints and indexes of ours that are missing, not validated or not valid.
select wanted.name, wanted.kind
from (
    select c.name, 'constraint' as kind from unnest(%(constraints)s::text[]) as c(name)
    union all
    select i.name, 'index' from unnest(%(indexes)s::text[]) as i(name)
) wanted
where not exists (
    select from pg_constraint k
    where k.conrelid = to_regclass(%(jobs)s) and k.conname = wanted.name and k.convalidated and wanted.kind = 'constraint'
) and not exists (
    select from pg_index x
    join pg_class c on c.oid = x.indexrelid
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = %(schema)s and c.relname = wanted.name and x.indisvalid and x.indisready and wanted.kind = 'index'
)
