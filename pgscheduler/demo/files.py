"""What the demo works on: a day's sales of a hundred branches, one CSV file each, and what must come of them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Delivery", "Digest", "UnfinishedFileError", "digest", "generate", "write_whole"]

PRODUCTS = (
    "apple",
    "bread",
    "butter",
    "coffee",
    "flour",
    "honey",
    "milk",
    "oats",
    "pear",
    "rice",
    "salt",
    "tea",
)
END = "# end of file"  # the last line; a file without it is still being written
ROWS = (700, 1500)  # sales per branch, at least and at most


class UnfinishedFileError(Exception):
    """The file's last line is missing: whoever sends it has not finished."""


@dataclass(frozen=True)
class Digest:
    """What one file comes to. Money is whole cents."""

    file: str
    rows: int
    cents: int
    best: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Delivery:
    """One generated file: what it must come to, and the part of it that is not there yet, if it arrives late."""

    def __init__(self, path: Path, text: str, expected: Digest, late: bool) -> None:
        self.path = path
        self.expected = expected
        self.rest = text[len(text) // 2 :] if late else None
        path.write_text(text[: len(text) // 2] if late else text, encoding="utf-8")

    def finish(self) -> None:
        """Whoever sends the file writes the rest of it."""
        if self.rest is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self.rest)
            self.rest = None


def generate(folder: Path, count: int, late: int, seed: int) -> dict[str, Delivery]:
    """Write `count` files, `late` of them only half; each with the digest that its generator knows it must have."""
    folder.mkdir(parents=True)
    dice = random.Random(seed)  # noqa: S311 - made-up sales
    tardy = set(dice.sample(range(1, count + 1), late))
    found = {}
    for number in range(1, count + 1):
        name = f"branch-{number:03}.csv"
        lines, cents, by_product = ["time,product,quantity,cents"], 0, dict.fromkeys(PRODUCTS, 0)
        rows = dice.randint(*ROWS)
        for row in range(rows):
            product, quantity, price = dice.choice(PRODUCTS), dice.randint(1, 9), dice.randint(49, 1999)
            lines.append(f"{8 + row * 12 // rows:02}:{dice.randint(0, 59):02},{product},{quantity},{price}")
            cents += quantity * price
            by_product[product] += quantity * price
        text = "\n".join([*lines, END, ""])
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        expected = Digest(name, rows, cents, max(PRODUCTS, key=by_product.__getitem__), sha256)
        found[name] = Delivery(folder / name, text, expected, number in tardy)
    return found


def digest(name: str, text: str) -> Digest:
    """Read one file; UnfinishedFileError if it is not all there."""
    lines = text.splitlines()
    if not lines or lines[-1] != END:
        raise UnfinishedFileError(f"{name} is still being written ({len(text)} bytes so far)")
    by_product: dict[str, int] = dict.fromkeys(PRODUCTS, 0)
    rows = 0
    for line in csv.DictReader(lines[:-1]):
        by_product[line["product"]] += int(line["quantity"]) * int(line["cents"])
        rows += 1
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Digest(name, rows, sum(by_product.values()), max(PRODUCTS, key=by_product.__getitem__), sha256)


def write_whole(path: Path, content: bytes) -> None:
    """The file is there whole or not at all, whenever this process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def result_is_right(folder: Path, expected: Digest) -> bool:
    """Does the result on disk say what must come of the file, and is the compressed copy the file itself?"""
    try:
        said = json.loads((folder / f"{expected.file}.json").read_bytes())
        copy = gzip.decompress((folder / f"{expected.file}.gz").read_bytes())
    except (OSError, ValueError, EOFError):
        return False
    return bool(said == expected.to_dict() and hashlib.sha256(copy).hexdigest() == expected.sha256)
