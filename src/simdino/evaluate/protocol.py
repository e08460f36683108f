"""One runner for every protocol: it opens encoder and data, calls the protocol, tells what was left out and keeps the
result in the run's folder.

A protocol is a function of an encoder and opened data, with declared keywords, that returns a `Result`:

    @as_protocol(LABELLED, example="knn runs/photos --data photos/")
    def knn(encoder: Encoder, data: Labelled, *, k: Annotated[int, Option("Neighbours that vote.")] = 20) -> Scores:
        ...

It is called with an encoder or its name, and with data or their name; `simdino evaluate knn` is made from it. Keywords
without a declaration are no options: `log` and `progress`, `run`, where the encoder was loaded from, which the runner
gives, and what Python alone may say.
Modules of protocols import nothing heavy but inside functions, so that help and typing errors answer at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from simdino.errors import InputError
from simdino.evaluate.layouts import Data, Layout
from simdino.feedback import Log, to_stderr
from simdino.keywords import Device, Positions, checked, keywords, purpose
from simdino.result import Result, plain

if TYPE_CHECKING:
    from simdino.data.splits import DataPath
    from simdino.models.encoder import Encoder

P = ParamSpec("P")
D = TypeVar("D")
R = TypeVar("R", bound=Result)


class Protocol(Generic[P, R]):
    """A declared protocol.

    name: its word on the command line. text: what it measures, its help. layout: the data it reads. example: the
    words after `simdino evaluate` of a typical call. function: the protocol itself, on an encoder and opened data."""

    def __init__(self, function: Callable[..., R], layout: Layout[Any], example: str) -> None:
        update_wrapper(self, function)
        self.function, self.layout, self.example = function, layout, example
        self.name = function.__name__
        self.text = purpose(function)

    def __call__(
        self, encoder: Encoder | str | Path, data: Data | None = None, *args: P.args, **given: P.kwargs
    ) -> R:  # fmt: skip
        """The result on an encoder, or the name of one, and on data, or their path or name.

        data: what the run was trained on unless given, where the encoder is of a run. A named encoder runs on the best
        device; load it yourself (`load_encoder(...).to(device)`) for another. A result of a run folder is kept in its
        evaluations.jsonl. Raises InputError for a setting that is unknown or out of range, and where encoder or data
        cannot be used."""
        return self.run(encoder, data, **given)

    def run(
        self, encoder: Encoder | str | Path, data: Data | None = None, *,
        device: Device = "auto", positions: Positions = None, **given: Any,
    ) -> R:  # fmt: skip
        """The same with what the command line says of the encoder.

        device: where it runs; an encoder that is loaded already stays where it is with "auto". positions: see
        `load_encoder`."""
        from simdino.models.weights import on_device

        run = Path(encoder) if isinstance(encoder, str | Path) else None
        log: Log = given.get("log", to_stderr)
        undeclared = inspect.signature(self.function).parameters.keys() - keywords(self.function).keys()
        besides = {name: given.pop(name) for name in [*given] if name in {*undeclared, "log", "progress"}}
        besides = {name: value for name, value in (besides | {"run": run}).items() if name in undeclared}
        settings = checked(self.function, given)
        where, opened = self.opened(run, data)
        model = on_device(encoder, device=device, positions=positions, log=log)
        result = self.function(model, opened, **settings, **besides)
        for name, why in getattr(result, "broken", {}).items():
            log(f"left out {name}: {why}")
        if run is not None:
            self.keep(run, where, opened, settings, result, log)
        return result

    def opened(self, run: Path | None, data: Data | None) -> tuple[DataPath | None, Any]:
        """Where the data are, None for open images, and the data as the protocol reads them."""
        from simdino.data.splits import DataPath
        from simdino.runs.evaluations import asked_data

        if data is not None and not isinstance(data, str | Path | DataPath):
            return None, self.layout.open(data)
        asked = data if isinstance(data, DataPath) else DataPath(root=None if data is None else str(data))
        if asked.root is None and (run is None or self.layout.required):
            raise InputError(f"{self.name} needs data: give {self.layout.text[:1].lower()}{self.layout.text[1:]}")
        where = asked if run is None else asked_data(run, asked)
        return where, self.layout.open(where)

    def keep(
        self, run: Path, where: DataPath | None, opened: Any, settings: dict[str, Any], result: R, log: Log
    ) -> None:  # fmt: skip
        """Keep the result in the run's folder. A setting that the result resolved is kept as resolved."""
        from simdino.runs.evaluations import keep_result

        name = opened.expanduser().resolve().name if isinstance(opened, Path) else opened.name
        counted, known = getattr(opened, "counted", {}), keywords(self.function)
        kept = {one: getattr(result, one, value) for one, value in settings.items() if known[one].option.result}
        kept = {one: value for one, value in kept.items() if value is not None and value != ()}
        for own, results in result.records():
            keep_result(
                run, protocol=self.name, where=where, name=name, counted=counted, settings=plain(kept | own),
                results=results, brief=str(result), log=log,
            )  # fmt: skip


def as_protocol(
    layout: Layout[D], *, example: str
) -> Callable[[Callable[Concatenate[Encoder, D, P], R]], Protocol[P, R]]:
    """Declare a function as a protocol that reads data of a layout. example: the words after `simdino evaluate`."""

    def declare(function: Callable[Concatenate[Encoder, D, P], R]) -> Protocol[P, R]:
        return Protocol(function, layout, example)

    return declare
