-- For the doctor's transaction only: every statement walks an index, none may last or wait for long.
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('jit', 'off', true), set_config('search_path', 'pg_catalog', true),
       set_config('timezone', 'UTC', true),
       set_config('statement_timeout', '5s', true), set_config('lock_timeout', '1s', true)
