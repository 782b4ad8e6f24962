-- The time, and the id of this transaction: with it a later look tells whether it has committed.
select {now}() as now, pg_current_xact_id()::text::bigint as transaction
