-- Delete a template. Its jobs carry what they need and stay.
delete from {templates} t where t.code = %(code)s returning t.code
