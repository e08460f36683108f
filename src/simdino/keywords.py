"""Functions that declare their keywords: help, range and default stand once, in the signature.

    def knn(encoder, data, *, k: Annotated[int, Option("Neighbours that vote.", AT_LEAST_1)] = 20) -> KnnResult: ...

The command line, the check of what Python gives, and the docs read the declaration. A keyword without an `Option` is
none of these: the caller provides it. Nothing heavy is imported here, nor may it be by a module whose help must be
quick.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from simdino.config import DataConfig, EncoderConfig, PositionRule, RunConfig, SpeedConfig, ViewsConfig
from simdino.errors import InputError
from simdino.settings import Range, declared, shown, wrong_with
from simdino.text import nearest


@dataclass(frozen=True)
class Option:
    """What a keyword is for.

    text: its help, a sentence. range: what its numbers may be. default: how help tells the default, where its value
    does not. result: whether it changes what is found: results with another value then stand beside each other."""

    text: str
    range: Range | None = None
    default: str | None = None
    result: bool = True


@dataclass(frozen=True, kw_only=True)
class Keyword:
    """A declared keyword of a function."""

    name: str
    kind: Any  # its type as annotated
    default: Any  # inspect.Parameter.empty where it must be given
    option: Option

    @property
    def word(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def parts(self) -> tuple[Any, ...]:
        """The types that it may have, None left out."""
        union = get_origin(self.kind) in (Union, UnionType)
        return tuple(part for part in (get_args(self.kind) if union else (self.kind,)) if part is not NoneType)

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return any(get_origin(part) is tuple for part in self.parts)

    @property
    def bare(self) -> Any:
        """The type of one of its values; a Literal for one of several words."""
        part = self.parts[-1]
        return get_args(part)[0] if get_origin(part) is tuple else part

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be; none where it is no choice."""
        return get_args(self.bare) if get_origin(self.bare) is Literal else ()

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, in a line; None where all is well."""
        several = isinstance(value, tuple) and len(value) > 0
        for one in value if several else [value]:
            expected = wrong_with((one,) if several else one, self.kind, self.option.range)
            if expected:
                return f"{self.word} {shown(one)} must be {expected}"
        twice = [one for i, one in enumerate(value) if one in value[:i]] if isinstance(value, tuple) else []
        return f"{self.word} {shown(twice[0])} is given twice" if twice else None


@cache
def keywords(function: Callable[..., Any]) -> dict[str, Keyword]:
    """The declared keywords of a function by name, in its order. Annotations of its other parameters are not read."""
    found = [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    holder = SimpleNamespace(__annotations__={one.name: one.annotation for one in found})
    hints = get_type_hints(holder, function.__globals__, include_extras=True)
    named: dict[str, Keyword] = {}
    for one in found:
        kind, *about = get_args(hints[one.name]) or (None,)
        option = next((part for part in about if isinstance(part, Option)), None)
        if option is not None:
            named[one.name] = Keyword(name=one.name, kind=kind, default=one.default, option=option)
    return named


def purpose(function: Callable[..., Any]) -> str:
    """The first paragraph of a function's docstring, in a line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def checked(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all declared keywords of a function, as given or by default: texts become paths and lists tuples
    where the keyword wants them. Raises one InputError that names every unknown keyword and every wrong value."""
    known = keywords(function)
    unknown = [f"{function.__name__} has no setting {name!r}{nearest(name, known)}" for name in given.keys() - known]
    values = {name: converted(keyword, given.get(name, keyword.default)) for name, keyword in known.items()}
    found = unknown + [line for name, value in values.items() if (line := known[name].problem(value))]
    if found:
        raise InputError("; ".join(found))
    return values


def converted(keyword: Keyword, value: Any) -> Any:
    """A value in the type that the keyword keeps it in."""
    if isinstance(value, str) and Path in keyword.parts and str not in keyword.parts:
        return Path(value)
    return tuple(value) if isinstance(value, list) and keyword.many else value


def range_of(group: type, name: str) -> Range:
    """The numbers that a setting of a run may be."""
    return declared(group, name).metadata["range"]


def option_like(group: type, name: str) -> Option:
    """The declaration of a setting of a run, for a keyword that means the same."""
    about = declared(group, name).metadata
    return Option(about["help"], about["range"])


ABOVE_0 = Range(above=0, at_most=10**6)
AT_LEAST_1, AT_LEAST_2 = (Range(at_least=least, at_most=10**9) for least in (1, 2))
COSINE = Range(at_least=0, below=1)
PIXELS, STEPS = range_of(ViewsConfig, "global_size"), range_of(RunConfig, "steps")
BATCH = range_of(SpeedConfig, "micro_batch")

TokenKind = Literal["cls", "mean", "patches"]
"""What of an encoder's tokens stands for an image: the class token, the mean of the patch tokens, or all of these."""

# Keywords that several functions have.
Device = Annotated[str, Option("Where the encoder runs: auto, cpu, cuda, cuda:1, mps.", result=False)]
Positions = Annotated[PositionRule | None, option_like(EncoderConfig, "positions")]
Workers = Annotated[int, Option("Processes that read images.", range_of(SpeedConfig, "workers"), result=False)]
Seed = Annotated[int, Option("Of every random draw.", range_of(RunConfig, "seed"))]
Steps = Annotated[int | None, Option("Length in batches, instead of --epochs.", STEPS)]
Batch = Annotated[
    int | None,
    Option("Images a step.", BATCH, "128, halved for small data until an epoch has 30 steps, but not below 16"),
]
Reduced = Annotated[bool, Option("Decode large JPEGs at a half or a quarter: faster, with slightly different numbers.")]
Exif = Annotated[
    Literal["turn", "ignore"],
    Option("What masks or boxes were drawn on: pictures turned as EXIF says, or their pixels as stored."),
]
ClassifierFile = Annotated[Path | None, Option("Save the classifier to this .safetensors file.", result=False)]
TrainFolder = Annotated[str | None, option_like(DataConfig, "train")]
ValFolder = Annotated[str | None, option_like(DataConfig, "val")]
ClassDepth = Annotated[int | None, option_like(DataConfig, "class_depth")]
