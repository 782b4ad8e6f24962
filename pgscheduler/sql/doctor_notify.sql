-- Say something on the doctor's private channel.
select pg_notify(%(channel)s, '')
