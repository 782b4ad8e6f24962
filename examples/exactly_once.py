"""Exactly once, for effects in the same database: the job's own SQL and its completion are one commit.

A job may start more than once (that is what a retry is). What it does inside `ctx.transaction()` happens
once, whatever crashes when: the commit also marks the run as completed, and only its rightful owner can.
"""

from datetime import timedelta

import psycopg
from _database import database

from pgscheduler import Backoff, Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class Transfer(Job):
    """Moves ten from Alice to Bob, and meets trouble twice."""

    config = JobConfig.one_time("transfer", retries=5, backoff=Backoff(initial=timedelta(milliseconds=50)))

    def run(self, ctx: RunContext) -> None:
        with ctx.transaction() as connection:
            connection.execute("update example_accounts set balance = balance - 10 where owner = 'alice'")
            if ctx.attempt == 1:
                print("attempt 1: half done, and failing: all of it is rolled back")
                raise ConnectionError("before the commit")
            connection.execute("update example_accounts set balance = balance + 10 where owner = 'bob'")
        print("attempt 2: committed, and failing after it: done is done")
        raise ConnectionError("after the commit")


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        with psycopg.connect(dsn) as connection:
            connection.execute("drop table if exists example_accounts")
            connection.execute("create table example_accounts (owner text primary key, balance int)")
            connection.execute("insert into example_accounts values ('alice', 100), ('bob', 100)")

        scheduler.start()
        ended = scheduler.wait(scheduler.schedule(Transfer()), timeout=20)
        print("the job:", ended.state, "at attempt", scheduler.runs(ended.id)[0].attempt)

        with psycopg.connect(dsn) as connection:
            for owner, balance in connection.execute("select * from example_accounts order by owner"):
                print(f"{owner} has {balance}")


if __name__ == "__main__":
    main()
