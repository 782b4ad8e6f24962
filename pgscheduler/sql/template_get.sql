-- One template by its code.
select * from {templates} t where t.code = %(code)s
