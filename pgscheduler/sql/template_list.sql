-- Templates in the order in which they are shown; the filter counts only if it is given.
select * from {templates} t
where %(active)s::boolean is null or t.active = %(active)s
order by t.display_order, t.code collate "C"
limit %(limit)s offset %(offset)s
