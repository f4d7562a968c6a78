"""Names that configurations may use: who may add one, and what is said of plugins that don't work."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from penchant.common import registry as registry_module
from penchant.common.errors import ConfigError
from penchant.common.registry import Registry

KEY, GROUP = "soup.herb", "penchant.herbs"
PARSLEY, BASIL = SimpleNamespace(name="parsley"), SimpleNamespace(name="basil")
NOT_A_HERB = "a text"


def herbs() -> Registry:
    made = Registry(KEY, GROUP)
    made.add("parsley", PARSLEY, own=True)
    return made


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points that other packages offer in the group of herbs; tests add to them."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points if group == GROUP else [])
    return points


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def here(name: str) -> str:
    """What an entry point says to mean a name of this module."""
    return f"{__name__}:{name}"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = SimpleNamespace(BASIL=BASIL, PARSLEY=PARSLEY, NOT_A_HERB=NOT_A_HERB)
    monkeypatch.setitem(__import__("sys").modules, __name__, module)


# --- added by a call ------------------------------------------------------------------------------


def test_what_was_added_is_found_by_its_name(offered: list[EntryPoint]) -> None:
    found = herbs()
    found.add("basil", BASIL)
    assert found.names() == ("parsley", "basil")
    assert found.get("basil") is BASIL
    assert "basil" in found
    assert "mint" not in found


def test_a_program_may_replace_its_own_but_none_of_penchants(offered: list[EntryPoint]) -> None:
    found = herbs()
    found.add("basil", BASIL)
    found.add("basil", PARSLEY)
    assert found.get("basil") is PARSLEY
    with pytest.raises(ConfigError, match=r"soup\.herb parsley is part of penchant and can't be replaced"):
        found.add("parsley", BASIL)
    assert found.get("parsley") is PARSLEY


@pytest.mark.parametrize("name", ["", "a,b", "a:b", "../a", "a b", ".a", "a\nb", "x" * 65])
def test_a_name_must_fit_into_lists_and_file_names(name: str) -> None:
    with pytest.raises(ConfigError, match=r"can't name a soup\.herb") as refusal:
        herbs().add(name, BASIL)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["mint", "", 3, ["parsley"], None, "x" * 1000])
def test_an_unknown_name_is_refused_with_the_choices(offered: list[EntryPoint], name: object) -> None:
    with pytest.raises(ConfigError, match=r"^soup\.herb is .*; choose one of parsley$") as refusal:
        herbs().check(name)
    assert len(str(refusal.value)) < 140


# --- offered by other packages --------------------------------------------------------------------


def test_a_plugin_is_loaded_when_it_is_asked_for(offered: list[EntryPoint]) -> None:
    offered += [point("basil", here("BASIL")), point("broken", "no.such.module:herb")]
    found = herbs()
    assert found.names() == ("parsley", "basil", "broken")
    found.check("broken")  # its name is known; nothing is loaded yet
    assert found.get("basil") is BASIL


def test_penchants_own_need_no_look_at_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(group: str) -> list[EntryPoint]:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(registry_module, "entry_points", looked)
    assert herbs().get("parsley") is PARSLEY
    herbs().check("parsley")


def test_a_plugin_takes_no_name_of_penchants(offered: list[EntryPoint]) -> None:
    offered.append(point("parsley", here("BASIL")))
    assert herbs().get("parsley") is PARSLEY
    assert herbs().names() == ("parsley",)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("no.such.module:herb", r"can't be loaded: ModuleNotFoundError: No module named 'no'"),
        (here("DILL"), r"can't be loaded: AttributeError"),
        (here("PARSLEY"), r"calls itself 'parsley'; its entry point must have the same name"),
        (here("NOT_A_HERB"), r"calls itself None"),
    ],
)
def test_a_broken_plugin_is_named_in_one_line(offered: list[EntryPoint], value: str, line: str) -> None:
    offered.append(point("basil", value))
    with pytest.raises(ConfigError, match=line) as refusal:
        herbs().get("basil")
    assert str(refusal.value).startswith(f'the plugin "basil" ({GROUP} of {value})')
    assert "\n" not in str(refusal.value)


def test_two_packages_that_offer_one_name_are_both_named(offered: list[EntryPoint]) -> None:
    offered += [point("basil", here("BASIL")), point("basil", "other.package:BASIL")]
    with pytest.raises(ConfigError, match=r"and .* both offer the plugin \"basil\".*uninstall one of them"):
        herbs().get("basil")
