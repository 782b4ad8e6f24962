-- Store one-time jobs without keys, in bulk.
copy {jobs} (name, priority, run_at, scheduled_at, created_at, parameters, options) from stdin
