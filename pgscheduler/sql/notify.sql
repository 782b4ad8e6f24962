-- A hint to all nodes of this prefix: `due` (look for work) or `cancel` (look at your claims).
select pg_notify({channel}, %(hint)s)
