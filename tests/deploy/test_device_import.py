"""`penchant device import` asks who the owner is, where a file names several people."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from penchant.common.errors import UsageError
from penchant.deploy.cli.device.choices import _owner_among


class Terminal(io.StringIO):
    """Somebody types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "owner"),
    [
        ("2", "bob"),
        ("bob", "bob"),
        ("#2", "bob"),
        ("#3", "7"),
        ("3", "7"),
        ("#7", "dora 3"),
        ("dora 21", "dora 21"),
        ("eve", ""),
        ("0", ""),
        ("", ""),
        ("#21", ""),
        ("##2", ""),
        ("9" * 5000, ""),
        ("99", ""),
    ],
)
def test_who_of_several_people_the_owner_is(
    typed: str, owner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number of those that are shown, or any name of the file; either says one person only."""
    people = ["ann", "bob", "7", *(f"dora {n}" for n in range(22))]
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n"))
    if owner:
        assert _owner_among(people, Path("file.csv")) == owner
    else:
        with pytest.raises(UsageError, match="nobody of that name; nothing was recorded"):
            _owner_among(people, Path("file.csv"))
    said = capsys.readouterr().out
    assert "  #1  ann\n  #2  bob\n  #3  7\n" in said
    assert "and 5 more" in said
    assert "dora 18" not in said


@pytest.mark.parametrize(
    ("people", "typed", "owner"),
    [
        (["2", "1"], "1", ""),
        (["2", "1"], "2", ""),
        (["2", "1"], "#1", "2"),
        (["2", "1"], "#2", "1"),
        (["1", "2"], "1", "1"),  # both say the same
        (["ann", "bob", "#1"], "#1", ""),
        (["ann", "bob", "#1"], "1", "ann"),
        (["ann", "bob", "#1"], "#3", "#1"),
    ],
)
def test_a_name_that_is_another_ones_number_is_refused(
    people: list[str], typed: str, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n"))
    if owner:
        assert _owner_among(people, Path("file.csv")) == owner
        return
    with pytest.raises(UsageError, match=r"and another one's number.*nothing was recorded") as refused:
        _owner_among(people, Path("file.csv"))
    assert "\n" not in str(refused.value)
