"""A request that is sent twice makes one job: `Idempotency-Key` is the key of a one-time job.

What may surprise: it is kept in no table of its own. Whoever stores a job under that name and key, in whichever way,
has stored the one that is answered with; and a recurring job has a key anyway, so there the header changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from pydantic import AfterValidator, Field

from pgscheduler import errors as e
from pgscheduler.records import JobRecord
from pgscheduler.scheduler import Scheduler

from ._errors import ApiError

__all__ = ["Once", "refuse_once"]

HEADER = "Idempotency-Key"
#: How often a key may be taken when the job is stored and free when it is looked for.
ROUNDS = 3


def _printable(value: str) -> str:
    # As a key, but what else the bytes of a header mean, nobody says.
    if not (value.isascii() and value.isprintable()):
        raise ValueError("must be printable ASCII")
    return value


_Key = Annotated[
    str,
    # A header has no blanks at its ends; they are no part of it.
    Field(min_length=1, max_length=255, json_schema_extra={"pattern": r"^[!-~]([ -~]{0,253}[!-~])?$"}),
    AfterValidator(_printable),
]
_ABOUT = (
    "A one-time job's key, instead of one in the body: the request may be sent twice and makes one job. The first time it "
    "is 201; after that 200 with that job, also if it has ended within the last hour. It says nothing about a recurring "
    "job, which has a key or its name for that: sent twice it is 409."
)


class _Once:
    """The header of one request, if there is one."""

    def __init__(
        self,
        request: Request,
        response: Response,
        key: Annotated[_Key | None, Header(alias=HEADER, description=_ABOUT)] = None,
    ) -> None:
        if len(request.headers.getlist(HEADER)) > 1:
            raise ApiError(400, "invalid_value", f"{HEADER} is given twice", field=HEADER)
        self._response = response
        self._key = key
        #: What the answer says.
        self.message = "Job scheduled successfully."

    def identity(self, key: str | None, if_exists: str) -> dict[str, Any]:
        """The key of a one-time job and what happens if it is taken, as the verb takes them; nothing without a key.

        Given is what the body says. Raises InvalidValueError if that is something else.
        """
        if self._key is None:  # without a key there is no job to find
            return {} if key is None else {"key": key, "if_exists": if_exists}
        if key not in (None, self._key):
            raise e.InvalidValueError("key", key, f"must be that of {HEADER}, or not be given")
        if if_exists != "error":
            raise e.InvalidValueError("if_exists", if_exists, f"must not be given together with {HEADER}")
        return {"key": self._key, "if_exists": "error"}

    def stored(self, scheduler: Scheduler, store: Callable[[], JobRecord], rounds: int = ROUNDS) -> JobRecord:
        """The job that `store` makes; for a repeated request the one that is there, or has ended lately, and 200."""
        try:
            return store()
        except e.DuplicateJobError as error:
            if self._key is None:
                raise
            taken = error
        try:
            found = scheduler.get_job((taken.name, self._key))
        except e.JobNotFoundError:  # it was deleted between the two, or its hour is over
            if rounds == 1:
                raise taken from None
            return self.stored(scheduler, store, rounds - 1)
        self._response.status_code = 200
        self.message = "Job was stored already."
        return found


#: Of an endpoint that makes one job which can have a key.
Once = Annotated[_Once, Depends()]


def refuse_once(request: Request) -> None:
    """Of an endpoint that makes jobs in another way: whoever sends the header believes that it means something."""
    if HEADER in request.headers:
        text = f"{HEADER} is not known here: it is for one new job"
        raise ApiError(422, "unknown_field", text, field=HEADER)
