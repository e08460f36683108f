"""Settings that say what they are: a field of a dataclass declares its help, its range and its word on the command
line in one place, and one check reads the declarations of all of them."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, MISSING, Field, dataclass, fields
from math import inf
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from simdino.errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, as in `Range(1, 1000)`; never nan or infinite."""

    at_least: float = -inf
    at_most: float = inf
    _: KW_ONLY
    above: float = -inf
    below: float = inf

    def __contains__(self, value: float) -> bool:
        return self.above < value < self.below and self.at_least <= value <= self.at_most

    def __str__(self) -> str:
        bounds = {
            "above {}": self.above, "{} or more": self.at_least, "below {}": self.below, "at most {}": self.at_most,
        }  # fmt: skip
        said = [words.format(plain(bound)) for words, bound in bounds.items() if abs(bound) != inf]
        return ", ".join(said) or "finite"


def plain(number: float) -> str:
    """A number as a person writes it: 0.1, 1000000."""
    return str(int(number)) if number == int(number) else f"{number:g}"


SHARE = Range(0, 1)
VALUES = Range(-1e9, 1e9)
Values = tuple[float, float]
"""The values of the pixels of deep images (more than 8 bits) that become 0 and 1."""

SEEDS = Range(at_least=0, below=2**63)  # what numpy's, torch's and our own generators all take


def setting(
    default: Any = MISSING, text: str = "", range: Range | None = None, *, word: str | None = None, fixed: bool = True,
    part: str | None = None, only: tuple[str, Range | tuple[Any, ...]] | None = None, heading: str | None = None,
    found: bool = False,
) -> Any:  # fmt: skip
    """A field of a dataclass of settings.

    text: its help. range: what its numbers may be, each of them where it is a tuple. word: its name on the command
    line, where it has one. fixed: whether it changes results, so that a run cannot go on with another value. part: the
    part of a method that it belongs to, see `methods.method.Method`; it has no meaning for methods without it. only:
    the path of another setting, and the values of that one with which this one has an effect. heading: the group of the
    help that its word stands in, where that is not its dataclass's. found: whether the images decide it, so that nobody
    can give it."""
    about = {
        "help": text, "range": range, "word": word, "fixed": fixed, "part": part, "only": only, "heading": heading,
        "found": found,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=about)


def declared(group: type, name: str) -> Field[Any]:
    """The field of a dataclass by its name."""
    return next(field for field in fields(group) if field.name == name)


def problems(settings: Any, *, named: Callable[[Field[Any]], str]) -> list[str]:
    """A line for every field whose value is of another type than declared, or out of its range.

    settings: an instance of a dataclass whose fields come from `setting`. named: how a line calls a field."""
    kinds = get_type_hints(type(settings))
    found = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        expected = wrong_with(value, kinds[field.name], field.metadata.get("range"))
        if expected:
            found.append(f"{named(field)} {shown(value)} must be {expected}")
    return found


def wrong_with(value: Any, kind: Any, range: Range | None) -> str | None:
    """What a value must be and is not; None where all is well."""
    if not fits(value, kind):
        return described(kind)
    outside = range is not None and any(number not in range for number in numbers(value))
    return str(range) if outside else None


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as settings have them: numbers, text, choices, tuples and unions of these."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        each = parts[:1] * len(value) if parts[-1] is Ellipsis and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(each) and all(map(fits, value, each))
    if isinstance(value, bool):  # which Python takes for a number
        return kind is bool
    if origin is dict:
        return isinstance(value, dict)
    return isinstance(value, int | float if kind is float else kind) and value != ""


def parsed(text: str, kind: Any) -> Any:
    """The value that a text says: numbers, true or false, null, choices, and tuples as numbers between commas. Raises
    ValueError for a text that is none of the type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in sorted(parts, key=lambda one: one is not NoneType):
            try:
                return parsed(text, part)
            except ValueError:
                continue
    elif origin is Literal:
        if text in parts:
            return text
    elif origin is tuple:
        texts = [part.strip() for part in text.split(",")]
        each = parts[:1] * len(texts) if parts[-1] is Ellipsis else parts
        return tuple(parsed(one, of) for one, of in zip(texts, each, strict=True))
    elif kind in (NoneType, bool):
        known = {"null": None} if kind is NoneType else {"true": True, "false": False}
        if text.lower() in known:
            return known[text.lower()]
    else:
        return kind(text)
    raise ValueError(text)


def described(kind: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin is tuple:
        many = "texts" if parts[0] is str else "numbers"
        return many if parts[-1] is Ellipsis else f"{len(parts)} {many}"
    if origin is dict:
        return "an object"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text that is not empty",
        dict: "an object",
        Path: "a path",
    }[kind]


def shown(value: Any) -> str:
    """A value as a person gave it, in a line: long ones are cut."""
    text = "null" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def numbers(value: Any) -> Iterator[float]:
    """The numbers in a value."""
    if isinstance(value, tuple):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def from_json(group: type, values: Any, *, where: str) -> Any:
    """The dataclass that JSON values describe; JSON has lists where dataclasses have tuples. Raises InputError as
    `check_fields` does."""
    check_fields(group, values, where=where)
    return group(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_fields(group: type, values: Any, *, where: str) -> None:
    """Raise InputError that names the fields of a dataclass that are missing in JSON values, or else are unknown.

    where: what the values are."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is {json_name(values)} where an object with {len(fields(group))} fields belongs")
    known = {field.name: field for field in fields(group)}
    missing = [name for name in known if known[name].default is MISSING and name not in values]
    unknown = [shown(name) for name in values if name not in known]
    for wrong, names in (("no", missing), ("an unknown", unknown)):
        if names:
            raise InputError(
                f"{where} has {wrong} {', '.join(names[:5])}: the configuration does not fit this version of simdino"
            )


def json_name(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")
