-- Jobs from SQL: names and keys as the Python API stores them, and a word about times that are too far away.

-- The clock that decides, whatever a search path puts before pg_catalog.
create or replace function {now}() returns timestamptz
    language plpgsql stable parallel safe
    as $$ begin return pg_catalog.clock_timestamp(); end $$;

-- Enqueue a one-time job from SQL. It is part of the caller's transaction: commit stores it, rollback forgets it.
-- Policies (retries, timeout and so on) are those of the class that is registered under the name.
create or replace function {enqueue}(
    name       text,
    parameters jsonb default null,
    key        text default null,
    run_at     timestamptz default null,
    priority   integer default 5,
    notify     boolean default true  -- false: no wake-up; the nodes find it at their next look
) returns bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    job_name text := $1;
    job_key text := $3;
    moment timestamptz := {now}();
    due timestamptz := coalesce($4, moment);
    stored bigint;
    -- What Python calls not printable, beyond control characters: formats (bidi overrides, zero-width), separators,
    -- private use. They make one name look like another, or turn round the line that it is shown in.
    unseen constant text := '[\u0080-\u00a0\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e'
        '\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ue000-\uf8ff\ufeff\ufff0-\ufffb\ufffe\uffff'
        '\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a'
        '\U000e0000-\U000e007f\U000f0000-\U0010ffff]';
begin
    if job_name is null or job_name !~ '^[^[:cntrl:]]{{1,255}}$' or job_name ~ '^\s*$' then
        raise exception 'name must be 1 to 255 printable characters' using errcode = '22023';
    end if;
    if job_key is not null and (job_key !~ '^[^[:cntrl:]]{{1,255}}$' or job_key ~ '^\s*$') then
        raise exception 'key must be 1 to 255 printable characters' using errcode = '22023';
    end if;
    -- As the Python API does it, so that two spellings are one name. ASCII, which nearly all names are, has but one.
    -- A database of another encoding than UTF8 has no function for it, and hardly a character that needs it.
    if current_setting('server_encoding') = 'UTF8' then
        if octet_length(job_name) > char_length(job_name) then
            if job_name ~ unseen then
                raise exception 'name must be 1 to 255 printable characters' using errcode = '22023';
            end if;
            job_name := normalize(job_name, nfc);
        end if;
        if octet_length(job_key) > char_length(job_key) then
            if job_key ~ unseen then
                raise exception 'key must be 1 to 255 printable characters' using errcode = '22023';
            end if;
            job_key := normalize(job_key, nfc);
        end if;
    end if;
    if coalesce($5, -1) not between 0 and 32767 then
        raise exception 'priority must be between 0 and 32767, got %', $5 using errcode = '22023';
    end if;
    if not isfinite(due) then
        raise exception 'run_at must be finite' using errcode = '22023';
    end if;
    if due < '0002-01-02Z' or due >= '9997-12-31Z' then  -- a day within the table's own bounds, which have a time zone
        raise exception 'run_at must be between the years 2 and 9997, got %', due using errcode = '22008';
    end if;
    if job_name not in {shared_names} and (
        select j.schedule is not null from {jobs} j
        where j.name = job_name and j.key is not null order by j.name, j.key limit 1) then
        raise exception 'job % is recurring; a one-time job may not share its name', job_name using errcode = '42710';
    end if;
    insert into {jobs} as j (name, key, parameters, priority, run_at, scheduled_at, created_at)
    values (job_name, job_key, $2, $5, due, due, moment)
    on conflict (name, key) where key is not null do update
        set parameters = excluded.parameters, priority = excluded.priority, options = excluded.options,
            run_at = excluded.run_at, scheduled_at = excluded.scheduled_at,
            failures = 0, stalls = 0, cancel_requested = false, after_run = nullif(j.after_run, 'delete')
        where j.state = 'pending' and j.schedule is null and j.completed_at is null
    returning j.id into stored;
    if stored is null then
        raise exception 'job is recurring, paused or currently running: %, %', job_name, job_key using errcode = '55006';
    end if;
    if $6 then
        perform pg_notify({channel}, 'due');
    end if;
    return stored;
end $$;
