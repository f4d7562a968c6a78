"""The relay's last word for the owner."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.client.agent.connection_note import NOTE, ConnectionNote, leave_note, read_note


def test_the_owner_reads_what_the_relay_left(tmp_path: Path) -> None:
    assert read_note(tmp_path) is None
    leave_note(tmp_path, ConnectionNote(1_700_000_000.5, "revoked"))
    assert read_note(tmp_path) == ConnectionNote(1_700_000_000.5, "revoked")
    assert (tmp_path / NOTE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"heard": -1, "refused": ""}', '{"heard": 1, "refused": 2}']
)
def test_anything_else_is_no_word(tmp_path: Path, text: str) -> None:
    (tmp_path / NOTE).write_text(text, encoding="utf-8")
    assert read_note(tmp_path) is None
