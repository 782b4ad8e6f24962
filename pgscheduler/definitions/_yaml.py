"""YAML as a definitions file may use it: plain data, each value with its line and column, and no surprises.

The parser is PyYAML's; what becomes of its events is decided here. Text means what YAML 1.2 says, and where
YAML 1.1 says otherwise (`NO`, `010`, `12:30`) it is refused: whoever wrote it may have meant either. Tags, merge
keys and a second document are refused too. Size, depth, and what aliases repeat have a limit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pgscheduler.errors import InvalidValueError, show

__all__ = ["MAX_BYTES", "DefinitionError", "Node", "read"]

MAX_BYTES = 1 << 20  # it bounds what a parser may cost
MAX_VALUES = 50_000  # what a document may hold; some five thousand jobs
MAX_DEPTH = 50  # levels; a job's parameters have their own limit
MAX_ALIASED = 10_000  # values that aliases repeat, in total: nine lines can else stand for a billion
MAX_DIGITS = 300

_TAGS = {
    "tag:yaml.org,2002:bool": "a bool",
    "tag:yaml.org,2002:int": "an int",
    "tag:yaml.org,2002:float": "a float",
    "tag:yaml.org,2002:null": "null",
    "tag:yaml.org,2002:str": "a str",
    # Written as text and kept as text: the characters are the same either way.
    "tag:yaml.org,2002:timestamp": "a str",
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULL = ("", "~", "null", "Null", "NULL")
_QUOTE = (
    "indent with spaces, and quote values that begin with * @ & ! % or hold a colon, cron lines above all"
)


class DefinitionError(InvalidValueError):
    """A definitions file breaks a rule. `file`, `line` and `column` (from 1) say where, if it is one place."""

    def __init__(
        self,
        file: str,
        problem: str,
        line: int | None = None,
        column: int | None = None,
        *,
        field: str = "definitions",
        hint: str = "",
    ) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.field = field
        self.value = None
        self.rule = problem
        where = "" if line is None else f" (line {line}, column {column})"
        Exception.__init__(self, f"{file}: {problem}{where}{': ' if hint else ''}{hint}")


@dataclass(slots=True)
class Node:
    """A value and where it stands. `value` is a scalar, a list of nodes, or a dict of nodes by key."""

    value: Any
    line: int
    column: int
    size: int = 1  # values in it, itself included, aliases counted as what they stand for
    depth: int = 1
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)  # where each key stands

    def plain(self) -> Any:
        """The data without the places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def read(text: str, file: str) -> Node | None:
    """The one document in `text`; None if there is nothing in it. Raises DefinitionError."""
    try:
        import yaml
    except ImportError as error:
        raise DefinitionError(
            file, 'reading it needs PyYAML: pip install "pgscheduler[yaml]"', field="yaml"
        ) from error
    try:
        return _Builder(yaml, text, file).document()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise DefinitionError(
            file, f"the character {show(chr(error.character))} is not allowed", line, column
        ) from None
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        problem, hint = f"not YAML: {_short(what)}", _QUOTE
        if "nesting depth" in what:  # the limit of newer versions of libyaml, which look ahead of us
            problem, hint = f"nested too deep: more than {MAX_DEPTH} levels", ""
        raise DefinitionError(file, problem, mark.line + 1, mark.column + 1, hint=hint) from None
    except ValueError as error:
        if isinstance(error, DefinitionError):
            raise
        raise DefinitionError(file, f"not YAML: {_short(str(error))}") from None


class _Builder:
    """Makes nodes of the parser's events, one at a time: what is too deep or too much is never read to its end."""

    def __init__(self, yaml: Any, text: str, file: str) -> None:
        self._yaml = yaml
        self._file = file
        self._resolver = yaml.resolver.Resolver()
        # libyaml's parser is ten times faster and gives the same events; not every wheel has it.
        self._events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self._values = 0
        self._anchors: dict[str, Node | None] = {}  # None: not complete yet
        self._aliased = 0

    def document(self) -> Node | None:
        yaml = self._yaml
        found: Node | None = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse("a second document: a duplicate --- is not allowed", event)
                found = self._node(next(self._events), "", 0)
        return found

    def _node(self, event: Any, path: str, depth: int) -> Node:
        yaml = self._yaml
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(f"too large: more than {MAX_VALUES} values", event)
        if event.tag is not None:
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(f"the tag {_short(shown)} is not allowed: data needs none", event)
        if depth > MAX_DEPTH:
            self._refuse(f"nested too deep: more than {MAX_DEPTH} levels", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, path, depth)
        else:
            node = self._mapping(event, path, depth)
        if depth + node.depth > MAX_DEPTH + 1:
            self._refuse(f"nested too deep: more than {MAX_DEPTH} levels, aliases included", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, start: Any, path: str, depth: int) -> Node:
        node = self._at(start, [])
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            item = self._node(event, f"{path}[{len(node.value)}]", depth + 1)
            node.value.append(item)
            _grow(node, item)
        return node

    def _mapping(self, start: Any, path: str, depth: int) -> Node:
        node = self._at(start, {})
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            if not isinstance(event, self._yaml.ScalarEvent):
                self._refuse("a key must be a str, not an alias, a list or a mapping", event, hint=_QUOTE)
            if event.value == "<<" and event.implicit[0]:
                self._refuse("merge keys (<<) are not allowed: YAML 1.2 has none", event)
            key = self._node(event, f"{path}.key", depth + 1)
            if not isinstance(key.value, str):
                self._refuse(f"a key must be a str, got {type(key.value).__name__}", event, hint="quote it")
            if key.value in node.value:
                first = node.keys[key.value][0]
                self._refuse(f"duplicate key {show(key.value)}, first on line {first}", event)
            node.keys[key.value] = (key.line, key.column)
            inner = f"{path}.{key.value}" if path else key.value
            item = self._node(next(self._events), inner, depth + 1)
            node.value[key.value] = item
            _grow(node, item)
        return node

    def _alias(self, event: Any) -> Node:
        target = self._anchors.get(event.anchor)
        if target is None:
            why = "holds itself" if event.anchor in self._anchors else "has no anchor"
            self._refuse(f"the alias *{_short(event.anchor)} {why}", event, hint=_QUOTE)
        self._aliased += target.size
        if self._aliased > MAX_ALIASED:
            self._refuse(f"aliases repeat too much: more than {MAX_ALIASED} values", event)
        return target

    def _scalar(self, event: Any, path: str) -> Node:
        text: str = event.value
        if not event.implicit[0]:  # quoted, or a block
            return self._at(event, text)
        value = _resolved(text)
        ours, theirs = _kind(value), self._kind_in_yaml_1_1(text)
        same_number = not isinstance(value, int) or not re.match(r"[-+]?0[0-9]", text)
        if ours != theirs or not same_number:
            now = ours if same_number else f"{ours} of ten"
            then = theirs if same_number else f"{theirs} of eight"
            problem = f"{_short(path)}: {show(text)} is {now} in YAML 1.2 and {then} in YAML 1.1"
            self._refuse(
                problem, event, hint="quote it if it is text, else write it so that there is no doubt"
            )
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(f"{_short(path)}: numbers must be finite, got {show(text)}", event)
        if isinstance(value, int) and len(text) > MAX_DIGITS:
            self._refuse(f"{_short(path)}: an integer has at most {MAX_DIGITS} digits", event)
        return self._at(event, value)

    def _kind_in_yaml_1_1(self, text: str) -> str:
        tag: str = self._resolver.resolve(self._yaml.ScalarNode, text, (True, False))
        return _TAGS.get(tag, tag.rpartition(":")[2])

    def _at(self, event: Any, value: Any) -> Node:
        return Node(value, event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse(self, problem: str, event: Any, *, hint: str = "") -> NoReturn:
        mark = event.start_mark
        raise DefinitionError(self._file, problem, mark.line + 1, mark.column + 1, hint=hint)


def _grow(node: Node, item: Node) -> None:
    node.size += item.size
    node.depth = max(node.depth, item.depth + 1)


def _resolved(text: str) -> Any:
    """What YAML 1.2's core schema makes of unquoted text."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if len(text) > MAX_DIGITS:
        return 0 if text.isdigit() else text
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kind = type(value).__name__
    return f"an {kind}" if kind == "int" else f"a {kind}"


def _short(text: str) -> str:
    return ascii(text)[1:-1][:120]
