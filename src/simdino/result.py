"""One shape for all results: a dataclass with plain values for programs and lines for people."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar


class Result:
    """What was found: a dataclass with plain values for programs and lines for people.

    A field with repr=False holds what is no plain value, such as a classifier. `broken`, where a result has it, holds
    the names of images that were left out, and why."""

    def as_dict(self) -> dict[str, Any]:
        """Its fields as plain values, without those of repr=False."""
        assert is_dataclass(self)
        return {field.name: plain(getattr(self, field.name)) for field in fields(self) if field.repr}

    def lines(self) -> list[str]:
        """All that a person should see, the result in brief at the end."""
        return str(self).splitlines()

    def records(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(settings that the result resolved, plain values) of each line in evaluations.jsonl."""
        yield {}, self.as_dict()


R = TypeVar("R", bound=Result)


@dataclass(frozen=True, kw_only=True)
class Table(Result, Generic[R]):
    """An encoder's result beside that of what it is compared with: the same encoder at random initialisation, raw
    pixels. Where a setting took several values there is a result for each of them.

    rows: results by name, the encoder's first. each: the settings that tell the results of a row apart. broken: the
    images left out for the encoder."""

    rows: dict[str, list[R]]
    each: tuple[dict[str, Any], ...] = ({},)
    broken: dict[str, str]

    @property
    def encoder(self) -> R:
        """The encoder's own result, the first where there are several."""
        return self.rows["encoder"][0]

    def __str__(self) -> str:
        return "\n".join(f"{name:<24}{result}" for name, results in self.rows.items() for result in results)

    def as_dict(self) -> dict[str, Any]:
        """An object for each row; a list of them where there are several results."""
        every = {name: [result.as_dict() for result in results] for name, results in self.rows.items()}
        return {name: results[0] if len(results) == 1 else results for name, results in every.items()}

    def lines(self) -> list[str]:
        """The details of the encoder's result, then a line for each row."""
        return [*self.encoder.lines()[:-1], *str(self).splitlines()]

    def records(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """A line for each result of a row."""
        for i, own in enumerate(self.each):
            yield own, {name: results[i].as_dict() for name, results in self.rows.items()}


def plain(value: Any) -> Any:
    """A value of a result as JSON has it: dataclasses are objects."""
    if isinstance(value, Result):
        return value.as_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value if isinstance(value, Path) else getattr(value, "root", value))
