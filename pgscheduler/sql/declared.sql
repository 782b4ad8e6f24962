-- The jobs of these names and keys, and the recurring ones that carry a source's mark.
select j.* from {jobs} j
where j.id in (
    select k.id
    from unnest(%(names)s::text[], %(keys)s::text[]) as given(name, key)
    join {jobs} k on k.name = given.name and k.key = given.key
    union
    -- A hint only: text that looks like the mark may stand elsewhere in the policies. Who reads it, looks.
    select k.id from {jobs} k where k.key is not null and k.schedule is not null and strpos(k.options, %(mark)s) > 0
)
order by j.id
