-- Hold the claim until the caller's transaction ends: nobody can give the job to another node meanwhile.
select j.id from {jobs} j where j.id = %(id)s and j.token = %(token)s for share
