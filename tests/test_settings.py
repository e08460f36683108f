"""Every setting declares what it may be, once, and every value that it may not be is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import Field, fields
from math import inf, isinf, nan
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from simdino import config as groups
from simdino.config import Config
from simdino.contracts import InputError, Preprocess
from simdino.data.survey import DatasetStatistics
from simdino.methods import METHODS, check_config, read_config
from simdino.options import Options
from simdino.recipes import resolve
from simdino.settings import Range, problems

SMALL = DatasetStatistics(
    images=400, read=400, channels=3, short_side=28, long_side=28, smallest=28, mean=(0.5,) * 3, std=(0.2,) * 3,
    labels=0, class_counts={}, broken={},
)  # fmt: skip
CONFIGS = {method: resolve("photos", Options(method=method, device="cpu"), facts=SMALL) for method in METHODS}
PREPROCESS = Preprocess(resize=8, crop=8, channels=1, mean=(0.5,), std=(0.5,))
Place = tuple[Config, str, Field[Any]]


def every_setting() -> list[Place]:
    """Every field of every part of a configuration."""
    found = {}
    for config in CONFIGS.values():
        for part in fields(config):
            group = getattr(config, part.name)
            found |= {(type(group), field.name): (config, part.name, field) for field in fields(group)}
    return list(found.values())


def kind(group: type, field: Field[Any]) -> Any:
    return get_type_hints(group)[field.name]


def holds_numbers(kind: Any) -> bool:
    return kind in (int, float) or (get_origin(kind) is not Literal and any(map(holds_numbers, get_args(kind))))


def alone(*, numeric: bool) -> list[Place]:
    return [
        (config, part, field)
        for config, part, field in every_setting()
        if holds_numbers(kind(type(getattr(config, part)), field)) == numeric
    ]


def ids(place: object) -> str:
    return f"{place[1]}.{place[2].name}" if isinstance(place, tuple) else ""


def changed(config: Config, part: str, **values: Any) -> Config:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)})


def refusal(config: Config, *, spoken: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        check_config(config, spoken=spoken)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outside(allowed: Range, whole: bool) -> list[float]:
    """Numbers next to the bounds that are none of the range, and those that never are."""
    step = 1 if whole else 1e-6
    found: list[float] = [] if whole else [nan, inf, -inf]
    for bound, beyond in (
        (allowed.above, allowed.above), (allowed.at_least, allowed.at_least - step),
        (allowed.below, allowed.below), (allowed.at_most, allowed.at_most + max(step, 1e-6 * abs(allowed.at_most))),
    ):  # fmt: skip
        if not isinf(bound):
            found.append(int(beyond) if whole else beyond)
    return found


def test_the_parts_of_a_configuration_are_all_looked_at() -> None:
    declared = {name for name, value in vars(groups).items() if isinstance(value, type) and name.endswith("Config")}
    common = {type(getattr(config, part)).__name__ for config, part, _ in every_setting() if part != "loss"}
    assert common == declared - {"Config", "LossConfig"}


@pytest.mark.parametrize("place", every_setting(), ids=ids)
def test_every_setting_says_what_it_is_and_what_it_may_be(place: Place) -> None:
    config, part, field = place
    assert field.metadata["help"].endswith((".", "]"))
    numeric = holds_numbers(kind(type(getattr(config, part)), field))
    assert isinstance(field.metadata["range"], Range) == numeric, "numbers have a range, and nothing else has"


@pytest.mark.parametrize("place", alone(numeric=True), ids=ids)
def test_a_number_out_of_its_range_is_one_line_with_its_name(place: Place) -> None:
    config, part, field = place
    value = getattr(getattr(config, part), field.name)
    whole = "int" in str(kind(type(getattr(config, part)), field))
    beyond = outside(field.metadata["range"], whole)
    assert beyond
    for number in beyond:
        given = (number, *value[1:]) if isinstance(value, tuple) else number
        said = refusal(changed(config, part, **{field.name: given}))
        assert said.startswith(f"{part}.{field.name} ")
        assert str(field.metadata["range"]) in said
        if field.metadata["word"]:
            assert f"--{field.metadata['word']} " in refusal(changed(config, part, **{field.name: given}), spoken=True)


WRONG: dict[Any, tuple[Any, ...]] = {
    int: (1.5, True, "3", [3], {}),
    float: ("0.5", True, [0.5], {}),
    bool: (1, "true", None, []),
    str: (3, "", True, [], {}),
    Literal: ("odd", "", 1, None, []),
    tuple: (0.5, "1", None, (), (1, "2", True), [0.5, 0.5]),
}


@pytest.mark.parametrize("place", every_setting(), ids=ids)
def test_a_value_of_another_type_is_one_line_with_its_name(place: Place) -> None:
    config, part, field = place
    hint = kind(type(getattr(config, part)), field)
    plain = next((one for one in get_args(hint) if "None" in str(hint) and one is not type(None)), hint)
    for value in WRONG[float if field.name == "gamma" else get_origin(plain) or plain]:
        if not (value == () and "..." in str(hint)):  # whose length a rule checks
            assert refusal(changed(config, part, **{field.name: value})).startswith(f"{part}.{field.name} "), value


@pytest.mark.parametrize("method", CONFIGS)
def test_json_gives_the_same_configuration_back(method: str) -> None:
    config = CONFIGS[method]
    check_config(config)
    assert read_config(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "config is null where an object"),
        ([], "config is a list where"),
        ({}, "config has no data"),
        ({"run": None}, "run is null where"),
        ({"run": {"method": "mae"}}, "run.method 'mae' must be simdino or simdinov2 or dino or dinov2"),
        ({"views": {"flop": 1}}, "views has an unknown 'flop'"),
        ({"loss": 3}, "loss is a number where"),
        ({"surplus": 1}, "config has an unknown 'surplus'"),
    ],
)
def test_json_that_is_no_configuration_is_one_line(values: Any, said: str) -> None:
    given = values
    if isinstance(values, dict) and values:
        given = CONFIGS["simdino"].as_dict()
        for name, value in values.items():
            given[name] = given.get(name, {}) | value if isinstance(value, dict) else value
    with pytest.raises(InputError) as caught:
        read_config(given)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("field", fields(Options), ids=lambda field: field.name)
def test_every_word_declares_itself_and_refuses_what_it_cannot_be(field: Field[Any]) -> None:
    assert field.metadata["word"] == field.name.replace("_", "-")
    assert field.metadata["help"].endswith((".", "]"))
    hint = kind(Options, field)
    if not holds_numbers(hint):
        assert field.metadata["range"] is None or field.name == "gamma"
        return
    for value in outside(field.metadata["range"], "int" in str(hint)):
        with pytest.raises(InputError, match=f"^--{field.metadata['word']} .* must be"):
            Options(**{field.name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(Options) if "str" in str(field.type)])
def test_an_empty_word_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^--{name} '' must be a text that is not empty"):
        Options(**{name: ""})


@pytest.mark.parametrize("field", fields(Preprocess), ids=lambda field: field.name)
def test_preprocessing_is_checked_too(field: Field[Any]) -> None:
    for value in ("8", nan, {}, (nan,), *(() if "None" in str(kind(Preprocess, field)) else (None,))):
        odd = dataclasses.replace(PREPROCESS, **{field.name: value})
        assert len(problems(odd, named=lambda one: one.name)) == 1


def test_settings_that_contradict_each_other_are_refused() -> None:
    config = CONFIGS["simdino"]
    for part, values, said in (
        ("views", {"mask_ratio": (0.5, 0.1)}, "views.mask_ratio must rise"),
        ("views", {"blur_sigma": (2.0, 1.0)}, "views.blur_sigma must rise"),
        ("data", {"mean": (0.5,)}, "one number for each of 3 channels"),
        ("data", {"std": (0.5,) * 4}, "one number for each of 3 channels"),
        ("run", {"method": "dinov2"}, "another objective"),
        ("run", {"batch": 512}, "--batch 512 is larger than the data"),
    ):
        assert said in refusal(changed(config, part, **values))
