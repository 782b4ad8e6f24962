"""An order and the job that ships it commit together; a rollback forgets both.

`connection=` takes a SQLAlchemy session or connection (also the async ones), a psycopg connection, or
Django's. Without this, a crash between two commits either loses the job or ships an order that never was.
"""

import psycopg
import sqlalchemy as sa
from _database import database
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgscheduler import Job, JobConfig, JobRecord, RunContext, Scheduler, SchedulerConfig


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "example_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class ShipOrder(Job):
    """Sends what was ordered."""

    def run(self, ctx: RunContext) -> None:
        print("shipping order", ctx.parameters["order_id"])


def place(scheduler: Scheduler, session: Session, item: str) -> JobRecord:
    """Both rows, in the caller's transaction; returns the job."""
    order = Order(item=item)
    session.add(order)
    session.flush()
    shipping = ShipOrder(JobConfig.one_time("ship_order", {"order_id": order.id}))
    job: JobRecord = scheduler.schedule(shipping, connection=session)
    return job


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
        Base.metadata.create_all(engine)
        scheduler.register(ShipOrder)
        scheduler.start()

        with Session(engine) as session:
            place(scheduler, session, "a mistake")
            session.rollback()
        with Session(engine) as session:
            job = place(scheduler, session, "a book")
            session.commit()

        print("the committed one:", scheduler.wait(job, timeout=10).state)
        with Session(engine) as session:
            print("orders:", session.scalars(sa.select(Order.item)).all())
        print("runs:", len(scheduler.runs(name="ship_order")))
        engine.dispose()


if __name__ == "__main__":
    main()
