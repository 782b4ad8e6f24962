-- Hold these jobs as they are until the end of the transaction.
select j.id from {jobs} j where j.id = any(%(ids)s::bigint[]) order by j.id for update
