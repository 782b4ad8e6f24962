"""Parameters with a type: wrong ones are refused when the job is scheduled, not when it runs at night.

`parameters_schema` is a dataclass, a pydantic model, or a JSON Schema (with the `schema` extra). With a class,
`ctx.parameters` is an instance of it.
"""

from dataclasses import dataclass

from _database import database

from pgscheduler import InvalidValueError, Job, JobConfig, RunContext, Scheduler, SchedulerConfig


@dataclass(frozen=True)
class Invoice:
    """What the job needs to know."""

    customer: str
    cents: int
    currency: str = "EUR"

    def __post_init__(self) -> None:
        if self.cents <= 0:
            raise ValueError("cents must be positive")


class SendInvoice(Job):
    """Sends one invoice."""

    config = JobConfig(name="send_invoice", parameters_schema=Invoice)

    def run(self, ctx: RunContext) -> str:
        invoice: Invoice = ctx.parameters
        return f"{invoice.customer} owes {invoice.cents / 100:.2f} {invoice.currency}"


def send(parameters: object) -> SendInvoice:
    return SendInvoice(JobConfig.one_time("send_invoice", parameters, parameters_schema=Invoice))


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(SendInvoice)
        scheduler.start()
        print(scheduler.wait(scheduler.schedule(send(Invoice("Ada", 1999))), timeout=10).result)
        print(scheduler.wait(scheduler.schedule(send({"customer": "Jo", "cents": 5})), timeout=10).result)
        for wrong in ({"customer": "Jo", "cents": -5}, {"customer": "Jo", "price": 5}):
            try:
                scheduler.schedule(send(wrong))
            except InvalidValueError as error:
                print("refused:", error.rule)


if __name__ == "__main__":
    main()
