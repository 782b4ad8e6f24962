"""`pgscheduler doctor`: print what the doctor found."""

from __future__ import annotations

import json
from typing import Any

from pgscheduler.doctor import Severity, examine

from ._group import cli
from ._options import configuration, database_options, debug_option, json_option
from ._output import one_line, say_json, say_table

__all__ = ["doctor"]


@cli.command()
@database_options
@json_option
@debug_option
def doctor(where: dict[str, Any], as_json: bool) -> int:
    """Look for what is late, lost or about to go wrong.

    Only reads, and never a whole big table; any user who may read the tables may ask. Ends with 1 if there is
    a problem; warnings alone end with 0.
    """
    found = examine(configuration(where))
    count = {severity.value: sum(one.severity is severity for one in found) for severity in Severity}
    status = 1 if count["problem"] else 0
    if as_json:
        say_json({"status": status, "count": count, "findings": [one.to_dict() for one in found]})
        return status
    rows = [(one.severity.value, one.check, one.what) for one in found]
    say_table("Doctor", ("severity", "check", "what"), rows, "nothing was looked at")
    for one in found:
        if one.severity is not Severity.OK:
            print(f"\n{one.severity.value} {one.check}: {one_line(one.advice)}")
            print("  " + one_line(json.dumps(one.evidence, ensure_ascii=False, default=str)))
    return status
