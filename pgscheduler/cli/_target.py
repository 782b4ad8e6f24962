"""MODULE[:OBJECT]: what a user's module gives a node to run."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

import click

from pgscheduler.job import Job
from pgscheduler.scheduler import Scheduler

__all__ = ["load_target"]


def load_target(target: str) -> Scheduler | list[type[Job] | Job]:
    """What MODULE[:OBJECT] names. Whatever its code raises is told in one line, with the module's name."""
    name, _, attribute = target.partition(":")
    if not name:
        raise click.UsageError("MODULE is missing in MODULE[:OBJECT]")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        hint = (
            f" (a module is meant, not a file: {name[:-3].replace('/', '.')})" if name.endswith(".py") else ""
        )
        if name.endswith((".yaml", ".yml")):
            hint = f" (definitions are given with --config {name})"
        raise click.ClickException(
            f"cannot import module {name!r}: {type(error).__name__}: {error}{hint}"
        ) from error
    if not attribute:
        jobs = [v for v in vars(module).values() if _is_job_class(v) and v.__module__ == module.__name__]
        if not jobs:
            raise click.ClickException(
                f"cannot import a job from module {name!r}: it defines no Job class; name an OBJECT"
            )
        return list(dict.fromkeys(jobs))
    found: Any = module
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise click.ClickException(
            f"cannot import {attribute!r} from module {name!r}: there is no such attribute"
        ) from None
    if callable(found) and not isinstance(found, type | Job | Scheduler):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise click.ClickException(
                f"cannot import from module {name!r}: {attribute}() raised {type(error).__name__}: {error}"
            ) from error
    if isinstance(found, Scheduler):
        return found
    several = list(found) if isinstance(found, list | tuple | set | frozenset) else [found]
    if several and all(_is_job_class(item) or isinstance(item, Job) for item in several):
        return several
    kind = found.__name__ if isinstance(found, type) else type(found).__name__
    raise click.ClickException(
        f"cannot import {attribute!r} from module {name!r}: it is no Scheduler, no function that returns one, and "
        f"no Job or list of Jobs, but {kind}"
    )


def _is_job_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Job) and not inspect.isabstract(value)
