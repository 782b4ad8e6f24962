"""What the shipped kinds take, for processes in which nobody has registered them: their rules, no node's policy."""

from __future__ import annotations

from typing import Any

from pgscheduler._registry import plain_parameters, validate_parameters

from .call import CallParameters
from .http import HttpParameters
from .shell import ShellParameters

__all__ = ["SHAPES", "check_shape"]

#: The class of the parameters, by the name that is the kind's own.
SHAPES: dict[str, type[Any]] = {
    "call_job": CallParameters,
    "http_job": HttpParameters,
    "shell_job": ShellParameters,
}


def check_shape(name: str, parameters: Any) -> None:
    """Raise InvalidValueError for parameters with which no node could run a job of this name, one of `SHARED_NAMES`."""
    validate_parameters(SHAPES[name], plain_parameters(parameters))
