"""Job templates: an administrator says what may be run and with which parameters, others only fill them in.

A template is a row, so it can be made and changed while nodes run. A job keeps what it took from its template.
"""

from datetime import timedelta

from _database import database

from pgscheduler import InvalidValueError, Job, RunContext, Scheduler, SchedulerConfig


class Report(Job):
    """The code behind the templates."""

    def run(self, ctx: RunContext) -> str:
        return f"{ctx.parameters['kind']} report of {ctx.parameters['month']}"


MONTH = {
    "type": "object",
    "required": ["kind", "month"],
    "properties": {
        "kind": {"enum": ["sales", "stock"]},
        "month": {"type": "string", "pattern": r"^\d{4}-\d{2}$"},
    },
}


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(Report)
        scheduler.templates.create(
            "MONTHLY_REPORT",
            handler="report",
            name="Report of a month",
            parameters_schema=MONTH,
            timeout=timedelta(minutes=5),
        )

        job = scheduler.templates.enqueue("MONTHLY_REPORT", {"kind": "sales", "month": "2027-01"})
        scheduler.run_pending()
        print("its result:", scheduler.get_job(job).result)

        try:
            scheduler.templates.enqueue("MONTHLY_REPORT", {"kind": "sales", "month": "January"})
        except InvalidValueError as error:
            print("refused:", error)

        scheduler.templates.update("MONTHLY_REPORT", active=False)
        print("offered now:", [template.name for template in scheduler.templates.list(active=True)])
        print("its runs:", len(scheduler.runs(template="MONTHLY_REPORT")))


if __name__ == "__main__":
    main()
