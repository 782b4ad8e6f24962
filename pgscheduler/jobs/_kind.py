"""What the kinds have in common: parameters of a class that checks them, and a policy that each node sets itself."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar, Self

from pgscheduler._registry import Choosing, plain_parameters, validate_parameters
from pgscheduler.errors import InvalidTypeError, InvalidValueError
from pgscheduler.job import JobConfig

__all__ = ["KindOfJob"]


class KindOfJob(Choosing):
    """A job whose parameters say what is done, and whose constructor says what may be.

    The constructor's arguments belong to the node: they are never stored, and no row can change them.
    """

    #: The class of its parameters; its constructor refuses wrong ones.
    parameters: ClassVar[type[Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "parameters" in cls.__dict__ and "own_name" not in cls.__dict__:
            cls.own_name = None  # what takes other parameters is another kind

    def __init__(self, config: JobConfig | None = None) -> None:
        super().__init__(config)
        self._adopt(self.config)

    def with_config(self, config: JobConfig) -> Self:
        """The same policy with another config: what to hand to `schedule()`. Raises like the constructor."""
        if not isinstance(config, JobConfig):
            raise InvalidTypeError("config", config, "must be a JobConfig")
        other = copy.copy(self)
        other._adopt(config)
        return other

    def _adopt(self, config: JobConfig) -> None:
        if config.parameters_schema not in (None, self.parameters):
            rule = f"must not be given: a {type(self).__name__} has its own"
            raise InvalidValueError("parameters_schema", config.parameters_schema, rule)
        self.config = dataclasses.replace(config, parameters_schema=self.parameters)
        given = plain_parameters(config.parameters)
        if given != {}:  # an instance that is only registered has none; schedule() would refuse it
            self.check(validate_parameters(self.parameters, given))
