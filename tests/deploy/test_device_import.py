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
        ("7", "7"),
        ("dora 21", "dora 21"),
        ("eve", ""),
        ("0", ""),
        ("", ""),
        ("99", ""),
    ],
)
def test_who_of_several_people_the_owner_is(
    typed: str, owner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number of those that are shown, or any name of the file; a name that is a number means the name."""
    people = ["ann", "bob", "7", *(f"dora {n}" for n in range(22))]
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n"))
    if owner:
        assert _owner_among(people, Path("file.csv")) == owner
    else:
        with pytest.raises(UsageError, match="nobody of that name; nothing was recorded"):
            _owner_among(people, Path("file.csv"))
    said = capsys.readouterr().out
    assert "  1  ann\n  2  bob\n  3  7\n" in said
    assert "and 5 more" in said
    assert "dora 18" not in said
