"""Any language that speaks SQL can enqueue: `<prefix>enqueue(name, parameters, key, run_at, priority)`.

The job belongs to the transaction that calls the function, so a trigger may do it too. The policies
(retries, timeout, …) are those of the class that is registered under the name.
"""

import psycopg
from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig

TRIGGER = """
    drop table if exists example_users;
    create table example_users (id bigint generated always as identity primary key, name text not null);
    create or replace function example_greet() returns trigger language plpgsql as $$
    begin
        perform pgscheduler_enqueue('greet', jsonb_build_object('name', new.name), key => 'user-' || new.id);
        return new;
    end $$;
    create trigger greet after insert on example_users for each row execute function example_greet();
"""


class Greet(Job):
    """Greets whoever was inserted."""

    config = JobConfig(name="greet", retries=3)

    def run(self, ctx: RunContext) -> str:
        return f"hello {ctx.parameters['name']} ({ctx.key})"


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(Greet)
        scheduler.start()
        with psycopg.connect(dsn) as connection:
            connection.execute(TRIGGER)
            connection.commit()

            connection.execute("insert into example_users (name) values ('Nobody')")
            connection.rollback()  # and the job was never there
            connection.execute("insert into example_users (name) values ('Ada'), ('Grace')")
            ((job,),) = connection.execute(
                """select pgscheduler_enqueue('greet', '{"name": "Jo"}')"""
            ).fetchall()
            connection.commit()

        print("from psql:", scheduler.wait(job, timeout=10).result)
        for user in (2, 3):  # the rolled back one had number 1
            print("from the trigger:", scheduler.wait(("greet", f"user-{user}"), timeout=10).result)
        print("runs:", len(scheduler.runs(name="greet")))


if __name__ == "__main__":
    main()
