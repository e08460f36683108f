"""What a person asks of a run: any setting by its path (`views.jitter`) or its short word (`batch`), and a few words
that are no setting. Help, ranges and types are those of the fields in `config` and in the methods' files.

Nothing heavy is imported here: the command line is made from these declarations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from simdino.config import TEMPERATURE, Config
from simdino.errors import InputError
from simdino.methods import GROUPS, METHODS
from simdino.methods.method import Method
from simdino.settings import Range, described, parsed, setting, shown, wrong_with
from simdino.text import nearest

HEADINGS = {
    "data": "data", "views": "views", "encoder": "method", "projector": "method", "loss": "method",
    "optim": "optimisation", "run": "length", "speed": "machine",
}  # fmt: skip
"""Under which heading of the help the settings of a part stand, unless they declare another."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What can be said of a run and is no setting of it, but decides some."""

    recipe: str | None = setting(
        None, "Named settings, such as simdino_vitb16 or dinov2_vitl16_released.", word="recipe", heading="method"
    )
    kind: str | None = setting(
        None, "Kind of the images, which decides views: natural, grey-medical, satellite, microscopy or small.  "
        "[default: natural]", word="kind", heading="views",
    )  # fmt: skip
    epochs: float | None = setting(
        None,
        "Length in epochs, passes over the images.",
        Range(above=0, at_most=10**6),
        word="epochs",
        heading="length",
    )
    minutes: float | None = setting(
        None, "Length in minutes: probed, turned into steps, frozen before step 1.", Range(above=0, at_most=10**6),
        word="minutes", heading="length",
    )  # fmt: skip
    images: int | None = setting(
        None, "Length in images seen, at most: as many steps as they fill.", Range(1, 10**12), word="images",
        heading="length",
    )  # fmt: skip
    flops: float | None = setting(
        None, "Length in operations, such as 1e17, at most: those of a step are counted before step 1, two for a "
        "product and its sum.", Range(above=0, at_most=1e30), word="flops", heading="length",
    )  # fmt: skip
    teacher_temperature: float | None = setting(
        None, "Temperature of the targets after warm-up.", TEMPERATURE, word="teacher-temperature",
        heading="optimisation", part="prototypes",
    )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What can be given, and who declares it: a part of the configuration, or the losses of methods."""

    path: str
    declared: dict[type, Field[Any]] = field(default_factory=dict)

    @property
    def first(self) -> Field[Any]:
        """The first declaration, which is the only one but for losses."""
        return next(iter(self.declared.values()))

    @property
    def word(self) -> str | None:
        """Its short word, where it has one."""
        return self.first.metadata["word"]

    @property
    def name(self) -> str:
        """What a person calls it: its option on the command line, or its path."""
        return f"--{self.word}" if self.word else self.path

    @property
    def heading(self) -> str:
        """The group of the help that it stands in."""
        return self.first.metadata["heading"] or HEADINGS[self.path.partition(".")[0]]

    @property
    def kind(self) -> Any:
        """The type of its values."""
        return next(types_of(owner)[one.name] for owner, one in self.declared.items())

    @property
    def help(self) -> str:
        """What it is; where not all methods have it, for which."""
        texts: dict[str, list[str]] = {}
        for method in METHODS.values():
            if (one := self.of(method)) is not None:
                texts.setdefault(one.metadata["help"], []).append(method.name)
        if [list(METHODS)] == list(texts.values()):
            return self.first.metadata["help"]
        return " ".join(f"For {' and '.join(names)}: {text[0].lower()}{text[1:]}" for text, names in texts.items())

    def of(self, method: Method) -> Field[Any] | None:
        """Its declaration for a method; None where it has no meaning for it."""
        for owner, one in self.declared.items():
            if owner in (Words, method.settings, *GROUPS.values()) and one.metadata["part"] in (None, *method.parts):
                return one
        return None

    def read(self, text: str) -> Any:
        """The value that a text says. Raises InputError for none of its type."""
        try:
            return parsed(text, self.kind)
        except ValueError:
            raise InputError(f"{self.name} {text!r} must be {described(self.kind)}") from None

    def problem(self, value: Any) -> str | None:
        """What a value must be and is not; None where all is well."""
        if self.path == "run.method" and not (isinstance(value, str) and value in METHODS):
            return f"{' or '.join(METHODS)}{nearest(str(value), METHODS)}"
        if self.first.metadata["found"]:
            return "left out: the images decide it"
        found = [
            wrong_with(value, types_of(owner)[one.name], one.metadata["range"]) for owner, one in self.declared.items()
        ]
        return None if None in found else found[0]


@cache
def types_of(owner: type) -> dict[str, Any]:
    """The types of the fields of a dataclass. They are kept, because Python evaluates all of them for each question."""
    return get_type_hints(owner)


def every_setting() -> dict[str, Setting]:
    """All that can be given, by its path; what is no setting of the configuration by its name."""
    owners = [*GROUPS.items(), *(("loss", method.settings) for method in METHODS.values()), ("", Words)]
    found: dict[str, Setting] = {}
    for group, owner in owners:
        for one in fields(owner):
            path = f"{group}.{one.name}" if group else one.name
            found.setdefault(path, Setting(path)).declared.setdefault(owner, one)
    return found


def setting_of(name: str) -> Setting:
    """The setting of a path or of a short word, with - or _ in it. Raises InputError that names the nearest."""
    every = every_setting()
    by_word = {one.word: one for one in every.values() if one.word}
    found = every.get(name) or by_word.get(name.replace("_", "-"))
    if found is None:
        raise InputError(f"unknown setting {name!r}{nearest(name, [*every, *by_word])}")
    return found


class Options:
    """What a person asks of a run; what is not given follows the images, the length and the machine.

    Args:
        settings: values by path or short word, such as {"views.jitter": 0.2}. None is a value.
        words: the same by short words, as in `Options(batch=64, minutes=30)`. None means: not given.

    Raises one InputError that lists every name that is unknown or given twice, and every value of another type, or out
    of its range."""

    def __init__(self, settings: Mapping[str, Any] | None = None, /, **words: Any) -> None:
        given = [*(settings or {}).items(), *((name, value) for name, value in words.items() if value is not None)]
        self.values: dict[str, Any] = {}
        found: list[str] = []
        for name, value in given:
            one = setting_of(name)
            if one.path in self.values:
                found.append(f"{one.name} is given twice")
            elif wrong := one.problem(tuple(value) if isinstance(value, list) else value):
                found.append(f"{one.name} {shown(value)} must be {wrong}")
            self.values[one.path] = tuple(value) if isinstance(value, list) else value
        if found:
            raise InputError("; ".join(found))
        self.words = Words(**{one.name: self.values[one.name] for one in fields(Words) if one.name in self.values})

    def get(self, path: str, default: Any = None) -> Any:
        """The value that was given for a path, or else the default."""
        return self.values.get(path, default)

    def but(self, settings: Mapping[str, Any] | None = None, /, **words: Any) -> Options:
        """The same with other values; a word that is None is taken away."""
        changed = {setting_of(name).path: value for name, value in {**(settings or {}), **words}.items()}
        gone = {setting_of(name).path for name, value in words.items() if value is None}
        return Options({path: value for path, value in {**self.values, **changed}.items() if path not in gone})


def typed(texts: Iterable[str]) -> dict[str, Any]:
    """The values that `--set PATH=VALUE` gives, by path. Raises InputError for a text that is none, and for a path that
    is given twice."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: give PATH=VALUE, such as views.jitter=0.2")
        one = setting_of(name.strip())
        if one.path in found:
            raise InputError(f"{one.name} is given twice")
        found[one.path] = one.read(value.strip())
    return found


def value_at(config: Config, path: str) -> Any:
    """The value of a setting in a configuration."""
    group, _, name = path.partition(".")
    return getattr(getattr(config, group), name)


def bare(kind: Any) -> Any:
    """A type without None."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    return parts[0] if NoneType in get_args(kind) and len(parts) == 1 else kind
