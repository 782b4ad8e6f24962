"""A schedule of your own: anything with `next_after(instant)`, here the last business day of each month.

It must be a pure function of time and must not go backwards. Only its name is stored, so every node that
runs the job needs the class; a frozen dataclass also stores its fields, and a change of them takes effect
at the next deploy.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


@dataclass(frozen=True)
class LastBusinessDay:
    """The last weekday of each month at this time of day, on the clocks of this zone."""

    at: time
    zone: str

    def next_after(self, instant: datetime) -> datetime | None:
        month = instant.astimezone(ZoneInfo(self.zone)).date().replace(day=1)
        while True:
            following = (month + timedelta(days=32)).replace(day=1)
            found = datetime.combine(_last_weekday_before(following), self.at, ZoneInfo(self.zone))
            if found > instant:
                return found.astimezone(UTC)
            month = following


def _last_weekday_before(day: date) -> date:
    day -= timedelta(days=1)
    return day - timedelta(days=max(day.weekday() - 4, 0))


class Payroll(Job):
    """Pays everybody."""

    config = JobConfig.recurring("payroll", LastBusinessDay(time(18), "Europe/Berlin"))

    def run(self, ctx: RunContext) -> str:
        return "paid"


def main() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(3):
        moment = LastBusinessDay(time(18), "Europe/Berlin").next_after(moment) or moment
        print(f"{moment:%A %d %B %Y, %H:%M} UTC")

    with (
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True, run_immediately=True)) as scheduler,
    ):
        job = scheduler.schedule(Payroll())
        print("stored as", dict(job.schedule or {})["value"])
        scheduler.trigger("payroll")  # due now, by way of exception; the schedule stays as it is
        print("runs that completed:", scheduler.run_pending().completed)
        print("its result:", scheduler.runs(name="payroll")[0].result)
        print("next time as before:", scheduler.get_job("payroll").scheduled_at == job.scheduled_at)


if __name__ == "__main__":
    main()
