-- Which of these names belong to recurring jobs.
select distinct j.name from {jobs} j
where j.name = any (%(names)s::text[]) and j.key is not null and j.schedule is not null
