-- How many templates there are; the filter counts only if it is given.
select count(*) as count from {templates} t
where %(active)s::boolean is null or t.active = %(active)s
