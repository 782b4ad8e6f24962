-- One live job, by id or by name and key.
select {job_columns} from {jobs} j
where j.id = coalesce(%(id)s::bigint, (select k.id from {jobs} k where k.name = %(name)s and k.key = %(key)s))
