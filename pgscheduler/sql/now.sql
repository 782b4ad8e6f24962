-- The time, by the clock that decides.
select {now}()
