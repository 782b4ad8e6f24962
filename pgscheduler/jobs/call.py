"""A function of an allowed module, named by the job's parameters."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pgscheduler.errors import InvalidTypeError, InvalidValueError, PgSchedulerError, show
from pgscheduler.job import JobConfig

from ._kind import KindOfJob

if TYPE_CHECKING:
    from pgscheduler._context import RunContext

__all__ = ["CallError", "CallJob", "CallParameters"]


class CallError(PgSchedulerError, LookupError):
    """The parameters name a module that is not allowed, or a function that it does not offer."""

    plain = True


@dataclass(frozen=True, kw_only=True)
class CallParameters:
    """What is called: `function` of `module`, with `args` (a list) and `kwargs` (an object)."""

    module: str = ""
    function: str = ""
    args: list[Any] = field(default_factory=list)
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("module", "function"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidTypeError(name, value, "must be a str")
            if not value:
                raise InvalidValueError(name, value, "must be given")
        if not isinstance(self.args, list):
            raise InvalidTypeError("args", type(self.args), "must be a list")
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(name, str) for name in self.kwargs):
            raise InvalidTypeError("kwargs", type(self.kwargs), "must be an object (a dict with str keys)")

    def __repr__(self) -> str:
        # Arguments may be secrets.
        return f"CallParameters({self.module}:{self.function}, {len(self.args)} args, kwargs {sorted(self.kwargs)})"


class CallJob(KindOfJob):
    """Calls a function; what it returns (JSON) is the run's result, what it raises fails the attempt.

    `modules` lists the modules, by their full names, whose functions may be called: those in the module's
    `__all__`, or, without one, the public functions that it defines itself; never what it merely imported, never
    a sub-module. They are imported here, by the constructor, so that no row can cause an import. There is no
    default: InvalidValueError if the list is empty, or a module cannot be imported.

    The function runs in a thread and knows nothing of the run; one that must hear of cancels, or is `async`, is
    better a `Job` of its own.
    """

    parameters = CallParameters
    own_name = "call_job"

    def __init__(self, config: JobConfig | None = None, *, modules: Iterable[str] = ()) -> None:
        if isinstance(modules, str) or not isinstance(modules, Iterable):
            raise InvalidTypeError("modules", modules, "must be a list of module names")
        self._modules = frozenset(map(_known, modules))
        if not self._modules:
            raise InvalidValueError("modules", [], "must name the modules whose functions may be called")
        super().__init__(config)

    def check(self, parameters: CallParameters) -> None:
        """CallError if this node does not offer the function, InvalidTypeError if the arguments do not fit it."""
        self._find(parameters)

    def run(self, ctx: RunContext) -> Any:
        call: CallParameters = ctx.parameters
        return self._find(call)(*call.args, **call.kwargs)

    def _find(self, call: CallParameters) -> Callable[..., Any]:
        if call.module not in self._modules:
            raise CallError(
                f"module {show(call.module)} is not allowed; CallJob(modules=[…]) lists those that are"
            )
        function = _offered(importlib.import_module(call.module), call.function)
        if inspect.iscoroutinefunction(function):
            raise CallError(f"{call.module}.{call.function} is async; a Job of its own can run it")
        try:
            signature = inspect.signature(function)
        except ValueError:
            return function  # a builtin that does not say what it takes
        try:
            signature.bind(*call.args, **call.kwargs)
        except TypeError as error:
            raise InvalidTypeError(
                "args", call, f"do not fit {call.module}.{call.function}: {error}"
            ) from None
        return function


def _known(name: Any) -> str:
    """A name of the allow-list, once its module is imported."""
    if not isinstance(name, str):
        raise InvalidTypeError("modules", name, "must hold only str")
    try:
        importlib.import_module(name)
    except Exception as error:
        raise InvalidValueError(
            "modules", name, f"must be importable: {type(error).__name__}: {error}"
        ) from error
    return name


def _offered(module: ModuleType, name: str) -> Callable[..., Any]:
    offered = getattr(module, "__all__", None)
    value = None if name.startswith("_") else vars(module).get(name)
    own = getattr(value, "__module__", "") == module.__name__
    public = own if offered is None else name in offered
    if not public or not inspect.isroutine(value):
        raise CallError(f"module {module.__name__} offers no function {show(name)}")
    function: Callable[..., Any] = value
    return function
