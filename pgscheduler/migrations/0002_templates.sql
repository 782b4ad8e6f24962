-- Job templates: under one code, which job runs, with which policies, and what its parameters must look like.

-- Nothing refers to this table and it to nothing: a job carries all that its run needs, and outlives its template.
create table {templates} (
    code              text primary key,
    name              text not null,
    handler           text not null,  -- the registered name that runs its jobs
    active            boolean not null default true,
    display_order     integer not null default 0,
    retries           integer not null default 3,
    timeout           interval default '1 hour',  -- null: no limit
    parameters_schema json,  -- not jsonb: a form shows its fields in the order in which they were written; null: anything fits
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    constraint {templates_schema} check (json_typeof(parameters_schema) = 'object')
);
