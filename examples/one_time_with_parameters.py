"""A job that runs once: now, after a delay, or at an instant. Its parameters are JSON, its result too.

The process that schedules it need not be the one that runs it, and need not even know its class:
`enqueue` takes the name.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class WelcomeEmail(Job):
    """Greets one user."""

    def run(self, ctx: RunContext) -> dict[str, Any]:
        user = ctx.parameters["user_id"]
        print(f"sending a welcome to user {user}")
        return {"sent_to": user}


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(WelcomeEmail)  # this node can run it
        scheduler.start()

        now = scheduler.schedule(WelcomeEmail(JobConfig.one_time("welcome_email", {"user_id": 42})))
        print("its result:", scheduler.wait(now, timeout=10).result)

        soon = scheduler.enqueue("welcome_email", {"user_id": 43}, delay=timedelta(seconds=0.5), retries=3)
        print("its result:", scheduler.wait(soon, timeout=10).result)

        # With a key, scheduling again replaces what is still pending instead of adding a second job.
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        scheduler.enqueue("welcome_email", {"user_id": 44}, key="user-44", run_at=tomorrow)
        scheduler.enqueue("welcome_email", {"user_id": 44, "vip": True}, key="user-44", run_at=tomorrow)
        for job in scheduler.jobs(name="welcome_email"):
            print(f"pending: {job.key} with {job.parameters}")
        print("cancelling it:", scheduler.cancel(("welcome_email", "user-44")))


if __name__ == "__main__":
    main()
