-- The schema's version.
select max(version) as version from {migrations}
