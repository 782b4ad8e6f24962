"""Jobs that need no class of yours: an HTTP request, a call of a function, a command.

None is known to a node unless you register it, and each opens only what you name::

    scheduler.register(HttpJob(allow=["10.1.0.0/16"]))     # public addresses, and these
    scheduler.register(CallJob(modules=["shop.reports"]))  # the public functions of these modules
    scheduler.register(ShellJob(enabled=True))             # whoever may write a job may run any command here

Then `enqueue("http_job", {"method": "GET", "url": …})` from anywhere, or `schedule(http.with_config(…))`.
Two policies of one kind have names of their own: `HttpJob(JobConfig(name="partner"), allow=[…])`.
To add a kind: a file here with a class of parameters that checks itself, and a `KindOfJob`. If its name shall be its
own, a line in `SHARED_NAMES` and one in `_shapes`, by which also processes without it check what they store.
"""

from __future__ import annotations

from .call import CallError, CallJob, CallParameters
from .http import HttpBlockedError, HttpCallError, HttpJob, HttpParameters
from .shell import ShellError, ShellJob, ShellParameters

__all__ = [
    "CallError",
    "CallJob",
    "CallParameters",
    "HttpBlockedError",
    "HttpCallError",
    "HttpJob",
    "HttpParameters",
    "ShellError",
    "ShellJob",
    "ShellParameters",
]
