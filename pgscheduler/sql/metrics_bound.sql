-- Hold the statements of this transaction to `milliseconds`, and to indexes.
select set_config('statement_timeout', %(milliseconds)s::text, true), set_config('lock_timeout', %(milliseconds)s::text, true),
       set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)
