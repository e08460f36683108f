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
from simdino.options import Options, Setting, setting_of, typed, value_at
from simdino.options import every_setting as every_declared
from simdino.plan import without_effect
from simdino.recipes import resolve
from simdino.settings import Range, problems

SMALL = DatasetStatistics(
    images=400, read=400, channels=3, short_side=28, long_side=28, smallest=28, mean=(0.5,) * 3, std=(0.2,) * 3,
    labels=0, class_counts={}, broken={},
)  # fmt: skip
CONFIGS = {method: resolve("photos", Options(method=method, device="cpu"), statistics=SMALL) for method in METHODS}
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


def every_setting_of_a_method() -> list[Place]:
    """Every field of every part, for the last method that it has a meaning for."""
    found = {}
    for config in CONFIGS.values():
        for part in fields(config):
            for field in fields(getattr(config, part.name)):
                if field.metadata["part"] in (None, *METHODS[config.run.method].parts):
                    found[part.name, field.name] = (config, part.name, field)
    return list(found.values())


def other_value(config: Config, part: str, field: Field[Any]) -> Any:
    """A value of a setting that is not the one it has, and is allowed."""
    now, hint = getattr(getattr(config, part), field.name), kind(type(getattr(config, part)), field)
    plain = next((one for one in get_args(hint) if "None" in str(hint) and one is not type(None)), hint)
    if isinstance(now, bool):
        return not now
    if get_origin(plain) is Literal:
        return next(one for one in get_args(plain) if one != now)
    if not holds_numbers(plain):
        known = {"run.method": "dino", "encoder.name": "vit_tiny", "run.stop_below": ("feature_rank 2 at 3",)}
        return known.get(f"{part}.{field.name}", "elsewhere")
    allowed = field.metadata["range"]
    whole = plain is int
    steps = (2, 1, 3, 8, 64) if whole else (0.5, 0.25, 0.125, 2.0)
    if isinstance(now, tuple):
        return tuple(next(n for n in steps if n in allowed and n != old) for old in now)
    return next(number for number in steps if number in allowed and number != now)


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
        pair = "tuple" in str(kind(type(getattr(config, part)), field))  # which may be None so far
        given = (number, *(value or (0, 1))[1:]) if pair else number
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
        unset = value is None and "None" in str(hint)
        if not (unset or (value == () and "..." in str(hint))):  # whose length a rule checks
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


@pytest.mark.parametrize("one", [one for one in every_declared().values() if one.word], ids=lambda one: one.word)
def test_every_word_refuses_what_it_cannot_be(one: Setting) -> None:
    assert one.help.endswith((".", "]"))
    allowed = one.first.metadata["range"]
    for value in outside(allowed, "int" in str(one.kind)) if holds_numbers(one.kind) else ({}, ""):
        with pytest.raises(InputError, match=f"^{one.name} .* must be"):
            Options({one.path: value})
        with pytest.raises(InputError, match=f"^{one.name} .* must be"):
            Options(**{str(one.word).replace("-", "_"): value})


@pytest.mark.parametrize("place", every_setting_of_a_method(), ids=ids)
def test_every_setting_can_be_given_by_its_path_as_text_and_as_value(place: Place) -> None:
    """What is given stands in the configuration, or it is refused by name, or said to have no effect."""
    config, part, field = place
    path, value = f"{part}.{field.name}", other_value(config, part, field)
    text = ",".join(map(str, value)) if isinstance(value, tuple) else "null" if value is None else str(value).lower()
    rest = {"run.method": config.run.method, "speed.device": "cpu"}
    rest.pop(path, None)
    try:
        options = Options({**rest, **typed([f"{path}={text}"])})
        assert options.values[path] == value
        found = resolve("photos", options, statistics=SMALL)
    except InputError as error:
        assert any(name in str(error) for name in (path, setting_of(path).name, part))
        return
    said = "\n".join(without_effect(options, found))
    assert value_at(found, path) == value or setting_of(path).name in said


@pytest.mark.parametrize("field", fields(Preprocess), ids=lambda field: field.name)
def test_preprocessing_is_checked_too(field: Field[Any]) -> None:
    for value in ("8", nan, {}, (nan,), *(() if "None" in str(kind(Preprocess, field)) else (None,))):
        odd = dataclasses.replace(PREPROCESS, **{field.name: value})
        assert len(problems(odd, named=lambda one: one.name)) == 1


def test_settings_that_contradict_each_other_are_refused() -> None:
    config = CONFIGS["simdino"]
    for part, values, said in (
        ("views", {"mask_ratio": (0.5, 0.1)}, "views.mask_ratio must rise"),
        ("views", {"mask_share": 0.5}, "views.mask_share 0.5 needs encoder.mask_token true"),
        ("encoder", {"image_size": 30}, "encoder.image_size of 30 px are not divisible"),
        ("views", {"blur_sigma": (2.0, 1.0)}, "views.blur_sigma must rise"),
        ("data", {"mean": (0.5,)}, "one number for each of 3 channels"),
        ("data", {"std": (0.5,) * 4}, "one number for each of 3 channels"),
        ("run", {"method": "dinov2"}, "another objective"),
        ("run", {"batch": 512}, "--batch 512 is larger than the data"),
    ):
        assert said in refusal(changed(config, part, **values))


def test_what_is_given_twice_or_does_not_exist_is_refused_with_the_nearest() -> None:
    for settings, words, said in (
        ({"views.jiter": 0.2}, {}, "unknown setting 'views.jiter'; did you mean views.jitter?"),
        ({}, {"bacth": 16}, "unknown setting 'bacth'; did you mean batch?"),
        ({"run.batch": 8}, {"batch": 16}, "--batch is given twice"),
        ({"data.train_images": 8}, {}, "data.train_images 8 must be left out: the images decide it"),
        ({"run.method": "dyno"}, {}, f"--method 'dyno' must be {' or '.join(METHODS)}; did you mean dino?"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            Options(settings, **words)
        assert str(caught.value) == said
    for texts, said in (
        (["views.jitter=0.2", "views.jitter=0.3"], "views.jitter is given twice"),
        (["views.jitter"], "--set views.jitter: give PATH=VALUE, such as views.jitter=0.2"),
        (["views.jitter=much"], "views.jitter 'much' must be a number"),
        (["optim.temperature=0.04"], "optim.temperature '0.04' must be 2 numbers"),
    ):
        with pytest.raises(InputError) as caught:
            typed(texts)
        assert str(caught.value) == said
    options = Options({"optim.temperature": (0.04, 0.07)}, method="dino", teacher_temperature=0.07)
    with pytest.raises(InputError, match=r"optim\.temperature is given twice: leave out --teacher"):
        resolve("photos", options, statistics=SMALL)
