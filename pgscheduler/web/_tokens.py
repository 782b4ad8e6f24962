"""Bearer tokens: which are known, and what each allows. Only their digests are kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pgscheduler.errors import InvalidTypeError, InvalidValueError

__all__ = ["READ_VARIABLE", "WRITE_VARIABLE", "Caller", "Scope", "Tokens"]

Scope = Literal["read", "write"]

READ_VARIABLE = "PGSCHEDULER_API_READ_TOKENS"
WRITE_VARIABLE = "PGSCHEDULER_API_WRITE_TOKENS"
#: 16 characters of what a Bearer header may hold: nobody guesses them, and no default password is so long.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}\Z")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


@dataclass(frozen=True)
class Caller:
    """Whose token it is, and what it allows."""

    #: The token's name, or its scope if it has none; what the log says.
    name: str
    scope: Scope


class Tokens:
    """The tokens that an API knows. `read` may look; `write` may do everything.

    Several of each, so that one can be replaced while the other still works. The values are not kept: `repr` and
    a core dump's reader get digests. A token may have a name before a colon, `deploy:its-secret-part`, under which
    the log tells what it changed; the name is no part of the token.
    """

    def __init__(self, *, read: Iterable[str] = (), write: Iterable[str] = ()) -> None:
        self._known: dict[bytes, Caller] = {}
        given: tuple[tuple[Scope, Iterable[str]], ...] = (("read", read), ("write", write))
        for scope, values in given:
            if isinstance(values, str | bytes) or not isinstance(values, Iterable):
                raise InvalidTypeError(f"tokens.{scope}", type(values), "must be a list of str")
            for token in values:
                if not isinstance(token, str):
                    raise InvalidTypeError(f"tokens.{scope}", type(token), "must hold only str")
                name, colon, secret = token.rpartition(":")
                if colon and not _NAME.match(name):
                    # Not repeated: a secret with a colon in it looks like one with a wrong name.
                    rule = "must have a name of 1 to 64 characters of A-Z a-z 0-9 . _ - before the colon"
                    raise InvalidValueError(f"tokens.{scope}", f"{len(name)} characters", rule)
                if not _TOKEN.match(secret):
                    rule = "must have 16 to 512 characters of A-Z a-z 0-9 . _ ~ + / = - (after name: if it has one)"
                    raise InvalidValueError(f"tokens.{scope}", f"{len(secret)} characters", rule)
                digest = _digest(secret.encode())
                if digest in self._known and self._known[digest].scope != scope:
                    rule = "must not hold a token that is also among those that may only read"
                    raise InvalidValueError(f"tokens.{scope}", "the same token", rule)
                self._known[digest] = Caller(name or scope, scope)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Tokens:
        """From PGSCHEDULER_API_READ_TOKENS and …_WRITE_TOKENS, separated by commas or blanks.

        A variable that is set and names no token is an error: somebody meant to close the door.
        """
        environ = os.environ if environ is None else environ
        found: dict[str, list[str]] = {}
        for variable in (READ_VARIABLE, WRITE_VARIABLE):
            text = environ.get(variable)
            found[variable] = [] if text is None else re.split(r"[\s,]+", text.strip(" ,\t\r\n"))
            if text is not None and not any(found[variable]):
                raise InvalidValueError(variable, text, "must hold a token, or not be set")
        try:
            return cls(read=found[READ_VARIABLE], write=found[WRITE_VARIABLE])
        except InvalidValueError as error:
            variable = READ_VARIABLE if error.field == "tokens.read" else WRITE_VARIABLE
            raise InvalidValueError(variable, error.value, error.rule) from None

    def __bool__(self) -> bool:
        """Is there any token at all?"""
        return bool(self._known)

    def __repr__(self) -> str:
        scopes = [caller.scope for caller in self._known.values()]
        return f"Tokens(read={scopes.count('read')}, write={scopes.count('write')})"

    def caller_of(self, token: bytes) -> Caller | None:
        """Whose token this is; None if it is unknown. The time it takes depends on no token's content."""
        digest, found = _digest(token), None
        for known, caller in self._known.items():
            if hmac.compare_digest(digest, known):
                found = caller
        return found

    def scope_of(self, token: bytes) -> Scope | None:
        """What this token allows; None if it is unknown."""
        caller = self.caller_of(token)
        return None if caller is None else caller.scope


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
