"""Errors for programs: codes that stay, and a reader that takes nothing else for an error."""

from __future__ import annotations

import re

import pytest

from penchant.common import errors
from penchant.deploy.error_report import AS_JSON, INTERRUPTED, SYSTEM, ErrorReport

CODES = {
    "AgreementError": "agreement",
    "BaseModelError": "base-model",
    "CertificateError": "certificate",
    "CodecError": "codec",
    "ConfigError": "config",
    "ConsoleError": "console",
    "DataError": "data",
    "DeviceError": "device",
    "EnrolmentError": "enrolment",
    "EnrolmentPending": "enrolment-pending",
    "GatewayError": "gateway",
    "JournalError": "journal",
    "MembershipError": "membership",
    "SharedFileError": "shared-file",
    "NotUnmasked": "not-unmasked",
    "SumRefused": "sum-refused",
    "OlderList": "older-list",
    "PenchantError": "failed",
    "PolicyRefusal": "policy-refusal",
    "PrivacyError": "privacy",
    "ProtocolError": "protocol",
    "QuantiserError": "quantiser",
    "RoundFailed": "round-failed",
    "RunDirectoryError": "run-directory",
    "RunInProgress": "run-in-progress",
    "SecretSharingError": "secret-sharing",
    "SignatureError": "signature",
    "StageError": "stage",
    "SuperLinkError": "superlink",
    "TokenError": "token",
    "TooFewDevices": "too-few-devices",
    "TooManyDropouts": "too-many-dropouts",
    "UsageError": "usage",
    "WorkerLost": "worker-lost",
}


def test_programs_may_rely_on_the_codes() -> None:
    """A class may be renamed, and then stands here under its new name: its code is what programs know."""
    assert {name: getattr(errors, name).code for name in CODES} == CODES


def test_every_error_has_a_code_of_its_own() -> None:
    found = [vars(getattr(errors, name)).get("code") for name in errors.__all__]
    assert None not in found
    assert len({*found, INTERRUPTED, SYSTEM}) == len(errors.__all__) + 2
    assert [code for code in found if not re.fullmatch(r"[a-z]+(-[a-z]+)*", code)] == []


def test_what_is_written_is_read_again_among_other_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(*next(iter(AS_JSON.items())))
    report = ErrorReport.of(errors.ConfigError('a "quoted" key — with\nlines'))
    ErrorReport("data", "an earlier one").write()
    report.write()
    err = capsys.readouterr().err
    assert ErrorReport.last_in(f"note: x\n{err}and more\n") == report
    assert report == ErrorReport("config", 'a "quoted" key — with lines')


@pytest.mark.parametrize(
    "text",
    ["", "penchant: text", "{", "[]", "{}", '{"error": "x"}', '{"error": "x", "message": "y", "more": 1}'],
)
def test_nothing_else_is_an_error(text: str) -> None:
    assert ErrorReport.last_in(text) is None


def test_what_is_read_is_printable() -> None:
    assert ErrorReport.read('{"error": "x", "message": "a\\u001b[2J\\nb"}') == ErrorReport("x", "a?[2J b")
