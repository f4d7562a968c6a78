"""The fields of a new run are the declared settings: shown, read, checked and written as declared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import pytest

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.common.settings import Section, Setting, dotted_table, setting, settings_of
from penchant.server.console import run_form
from penchant.server.console.run_form import PREFIX, FormField, applying, beginning, grouped, toml_of, typed

DECLARED = settings_of(RunConfig)


@dataclass(frozen=True)
class TeaConfig(Section):
    minutes: int = setting(3, "How long the tea draws.", low=1, high=10, usual=True)
    milk: bool = setting(False, "Whether there is milk.")
    pot: str = setting("round", "The pot that is used.", choices=("round", "tall"), simulated=True)


@dataclass(frozen=True)
class Kitchen(Section):
    tea: TeaConfig = dataclasses.field(default_factory=TeaConfig)


def field_of(key: str, text: str) -> FormField:
    return next(field for field in typed({PREFIX + key: text}) if field.setting.key == key)


def others(one: Setting) -> list[Any]:
    """Values of a setting that are not its default."""
    if one.choices:
        found: list[Any] = list(one.choices)
    elif get_origin(one.kind) is tuple:
        found = [(), (4, -5)] if get_args(one.kind)[0] is int else [(), ("head", "layer.*.norm")]
    else:
        numbers = (one.declared.low, one.declared.high, 1 / 3 if one.kind is float else 7)
        low, high = one.declared.low or 0, one.declared.high or 0
        found = ["other"] if one.kind is str else [one.kind(n) for n in numbers if low <= (n or 0) <= high]
    return [value for value in found if value != one.default]


def test_there_is_a_field_for_each_declared_setting_and_no_other() -> None:
    assert [field.setting for field in beginning({})] == list(DECLARED)
    assert [field.setting.key for field in typed({})] == [one.key for one in DECLARED]
    assert len({field.id for field in beginning({})}) == len(DECLARED)
    shown = [field for group in grouped(beginning({})) for field in (*group.usual, *group.more)]
    assert sorted(field.name for field in shown) == sorted(PREFIX + one.key for one in DECLARED)
    assert [group.title for group in grouped(beginning({}))] == list(dict.fromkeys(o.group for o in DECLARED))


def test_a_setting_that_is_declared_is_in_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The declaration is the one place that a new setting touches."""
    monkeypatch.setattr(run_form, "RunConfig", Kitchen)
    minutes, milk, pot = typed({"set.tea.minutes": "11", "set.tea.milk": "on"})
    assert (minutes.control, minutes.low, minutes.high, minutes.step) == ("number", "1", "10", "1")
    assert minutes.hint == "1 to 10; default 3"
    assert minutes.error == "tea.minutes is 11; it must lie in 1 … 10"
    assert (milk.control, milk.value, milk.hint) == ("switch", True, "Default off")
    assert (pot.control, pot.options, pot.text) == ("choice", ("round", "tall"), "round")
    (group,) = grouped((minutes, milk, pot))
    assert (group.title, group.usual, group.more) == ("Tea", (minutes,), (milk, pot))
    assert applying((minutes, milk, pot), fleet=True) == (minutes, milk)


def test_what_means_nothing_to_real_devices_is_not_for_fleets() -> None:
    left = {field.setting.key for field in applying(beginning({}), fleet=True)}
    gone = {one.key for one in DECLARED} - left
    assert {key for key in gone if not key.startswith("data.")} == {
        "grid",
        "workers",
        "batch_people",
        "federation.dropout",
        "privacy.secagg",
    }
    assert not any(key.startswith("data.") for key in left)


@pytest.mark.parametrize("one", DECLARED, ids=lambda one: one.key)
def test_what_a_field_shows_is_read_as_the_same_value(one: Setting) -> None:
    for value in (one.default, *others(one)):
        (shown,) = (field for field in beginning({one.key: value}) if field.setting.key == one.key)
        read = field_of(one.key, shown.text)
        assert (read.value, read.error) == (one.checked(value), "")
        assert type(read.value) is type(one.default)
        assert read.changed == (value != one.default)
        assert shown.text in shown.options or shown.control != "choice"


@pytest.mark.parametrize("one", DECLARED, ids=lambda one: one.key)
def test_only_what_differs_from_the_defaults_is_written(one: Setting) -> None:
    assert toml_of(typed({PREFIX + field.setting.key: field.text for field in beginning({})})) == ""
    for value in others(one):
        written = toml_of(beginning({one.key: value}))
        plain = list(value) if isinstance(value, tuple) else value
        assert RunConfig.keys_in(written) == {one.key: plain}


def test_fields_make_the_configuration_that_they_were_filled_from() -> None:
    changes = {
        "seed": 2**63 - 1,
        "adapter.layers": [0, -2],
        "training.lr_shared": 0.1 + 0.2,
        "privacy.secagg": False,
    }
    config = RunConfig().changed(changes)
    fields = beginning(dotted_table(config))
    again = typed({field.name: field.text for field in fields})
    assert RunConfig.from_toml(toml_of(again)) == config


@pytest.mark.parametrize(
    ("key", "text", "error"),
    [
        ("federation.rounds", "4001", "federation.rounds is 4001; it must lie in 0 … 4000"),
        ("federation.rounds", "many", "federation.rounds is 'many'; it must be a whole number"),
        ("federation.rounds", "", "federation.rounds is ''; it must be a whole number"),
        ("federation.rounds", "3.5", "federation.rounds is '3.5'; it must be a whole number"),
        ("federation.rounds", "9" * 5000, "federation.rounds is '9999"),
        ("seed", "9" * 40, "seed is a number of 133 bits; it must be a far smaller one"),
        ("federation.clip", "nan", "federation.clip is nan; it must be a finite number"),
        ("federation.clip", "wide", "federation.clip is 'wide'; it must be a number"),
        ("adapter.share", "Z", "adapter.share is 'Z'; choose one of "),
        ("adapter.head", "ours", "adapter.head is 'ours'; choose one of auto, shared, personal"),
        ("privacy.ring_bits", "48", "privacy.ring_bits is 48; it must be 32 or 64"),
        ("privacy.secagg", "maybe", "privacy.secagg is 'maybe'; it must be true or false"),
        ("adapter.layers", "1, two", "adapter.layers is 'two'; it must be a whole number"),
        ("federation.combine", "", "federation.combine is ''; choose one of mean"),
    ],
)
def test_a_wrong_text_stays_and_has_the_line_of_the_settings_own_check(
    key: str, text: str, error: str
) -> None:
    field = field_of(key, text)
    assert field.text == text
    assert field.error.startswith(error)
    assert "\n" not in field.error
    with pytest.raises(ConfigError) as caught:
        RunConfig().changed({key: field.value})
    assert str(caught.value) == field.error
    if field.control == "choice":
        assert text in field.options
    assert (field.control == "number") <= (text == "" or text[0].isdigit() or text == "nan")


@pytest.mark.parametrize("value", ['"', "a,b", " a", "", "[x]", "é", "a\nb"])
def test_a_list_of_odd_texts_is_read_as_it_was(value: str) -> None:
    (shown,) = (f for f in beginning({"data.columns": [value, "b"]}) if f.setting.key == "data.columns")
    assert field_of("data.columns", shown.text).value == (value, "b")


@pytest.mark.parametrize("text", ["[", "[1, 2", '["a", 3]', "[[[" * 5000])
def test_a_list_that_can_not_be_read_is_no_fault_of_ours(text: str) -> None:
    assert field_of("adapter.layers", text).error.startswith("adapter.layers ")


NO_ITEMS = (
    "[null]",
    "[true]",
    "[0.5]",
    '["\\ud800"]',
    '[["a"]]',
    "[" * 300 + "]" * 300,
    "[" * 9000 + "]" * 9000,
)
LISTS = [one.key for one in DECLARED if get_origin(one.kind) is tuple]


@pytest.mark.parametrize("text", NO_ITEMS, ids=range(len(NO_ITEMS)))
@pytest.mark.parametrize("key", LISTS)
def test_a_list_of_what_is_no_text_and_no_number_is_wrong_as_it_stands(key: str, text: str) -> None:
    field = field_of(key, text)
    assert field.text == field.value == text
    assert field.error == f"{key} must be a list"
    assert RunConfig.keys_in(toml_of([field])) == {key: text}


@pytest.mark.parametrize("value", ["[[" * 60 + "]]" * 60, "[1979-05-27]", "{a = [{}]}"])
def test_a_file_with_odd_values_is_written_again_as_fields_show_it(value: str) -> None:
    for key in ("adapter.target_modules", "adapter.rank"):
        values = RunConfig.keys_in(f"{key} = {value}")
        (field,) = (field for field in beginning(values) if field.setting.key == key)
        assert field.error
        assert RunConfig.keys_in(toml_of([field])) == {key: field.text}


def test_a_number_that_python_does_not_write_is_refused_as_any_other() -> None:
    values = RunConfig.keys_in("seed = 0x" + "f" * 5000)
    (field,) = (field for field in beginning(values) if field.setting.key == "seed")
    assert field.error == "seed is 'a number of far too many digits'; it must be a whole number"


def test_a_fold_is_open_where_something_is_wrong_or_was_written() -> None:
    fields = typed({"set.training.batch_size": "-1", "set.model.normalize": "20"})
    opens = {group.title: group.opens({"set.model.normalize"}) for group in grouped(fields)}
    assert [title for title, open in opens.items() if open] == ["Model and adapter", "Training"]
    changed = {group.title: group.changed for group in grouped(fields) if group.changed}
    assert changed == {"Model and adapter": 1, "Training": 1}
