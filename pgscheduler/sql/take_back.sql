-- Forget a job that was stored just now if the last one-time job of its name and key ended within the window, and tell
-- how that ended. In the transaction that stored it, and after: whatever left the key free for it can be seen by then
-- (a caller's repeatable read sees only what had ended when it began).
with ended as materialized (
    select r.outcome from {runs} r
    where r.name = %(name)s and r.key = %(key)s and r.schedule is null
      and r.finished_at > {now}() - %(window)s * interval '1 second'
    order by r.finished_at desc
    limit 1
),
forgotten as (
    delete from {jobs} j where j.id = %(id)s and exists (select from ended)
)
select e.outcome from ended e
