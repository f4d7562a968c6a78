"""The typed error tree. Every error says in one line what is wrong and what to do.

``exit_code`` follows the command line's convention: 2 for wrong use (bad input, refused before
anything was changed), 1 for a failure during work. ``code`` names the class to programs that read errors as
JSON (`penchant.deploy.error_report`): it stays when a class is renamed. Messages never carry secrets or
anybody's data.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AgreementError",
    "BaseModelError",
    "CertificateError",
    "CodecError",
    "ConfigError",
    "ConsoleError",
    "DataError",
    "DeliveryError",
    "DeviceError",
    "EnrolmentError",
    "EnrolmentPending",
    "GatewayError",
    "JournalError",
    "LedgerError",
    "MembershipError",
    "NotUnmasked",
    "OlderList",
    "PenchantError",
    "PolicyRefusal",
    "PrivacyError",
    "ProtocolError",
    "QuantiserError",
    "RoundFailed",
    "RunDirectoryError",
    "RunInProgress",
    "SecretSharingError",
    "SharedFileError",
    "SignatureError",
    "StageError",
    "SumRefused",
    "SuperLinkError",
    "TokenError",
    "TooFewDevices",
    "TooManyDropouts",
    "UpstreamError",
    "UsageError",
    "WorkerLost",
]


class PenchantError(Exception):
    """Root of all errors that penchant raises on purpose."""

    code: ClassVar[str] = "failed"
    exit_code = 1

    def __init__(self, message: object = "", *, on_command_line: str = "") -> None:
        """An error in one line.

        Args:
            message: what is wrong and what to do, in words that suit a program, a page and a command.
            on_command_line: what a command prints instead, where the remedy is one of its flags.
        """
        super().__init__(message)
        self.on_command_line = on_command_line or str(message)

    @property
    def outcome(self) -> str:
        """How an audit tells of an act that ended so: refused, of wrong use, before anything was changed."""
        return f"{'refused' if self.exit_code == UsageError.exit_code else 'failed'}: {self}"


# --- wrong use: refused before anything is changed ------------------------------------------------


class UsageError(PenchantError):
    """The call is wrong; nothing was changed."""

    code = "usage"
    exit_code = 2


class ConfigError(UsageError):
    """A configuration value or key is unknown, missing or out of range."""

    code = "config"

    def __init__(
        self, message: object = "", *, on_command_line: str = "", about: tuple[str, ...] = ()
    ) -> None:
        """An error in one line.

        Args:
            message: as of every error.
            on_command_line: as of every error.
            about: where a form says it: keys of settings, or "name" for that of a run.
        """
        super().__init__(message, on_command_line=on_command_line)
        self.about = about


class PrivacyError(ConfigError):
    """Noise, a bound or a promise of differential privacy that is out of range, or that nothing can keep."""

    code = "privacy"


class DataError(UsageError):
    """A data set or a row of it can't be used."""

    code = "data"


class BaseModelError(UsageError):
    """A base model is missing, is not what its digest says, or has no such modules."""

    code = "base-model"


class RunDirectoryError(UsageError):
    """A run directory is in use, belongs to another configuration, or is not one."""

    code = "run-directory"


class RunInProgress(UsageError):
    """A run can't begin while another of its fleet goes on: later it can."""

    code = "run-in-progress"


# --- the wire and the protocol --------------------------------------------------------------------


class ProtocolError(PenchantError):
    """A message, or its sender, broke the protocol."""

    code = "protocol"


class CodecError(ProtocolError):
    """Bytes that are not a well-formed message of this version."""

    code = "codec"


class StageError(ProtocolError):
    """A message that does not belong to the current stage, round, attempt or run."""

    code = "stage"


class AgreementError(ProtocolError):
    """Parties do not see the same thing: context digests, rosters or survivor lists differ."""

    code = "agreement"


class SignatureError(ProtocolError):
    """A signature is missing, wrong, repeated or by someone outside the list."""

    code = "signature"


class CertificateError(ProtocolError):
    """An identity without a valid certificate of the enrolment authority."""

    code = "certificate"


class MembershipError(ProtocolError):
    """A revoked identity, or a member list that is older than one already seen, stale or unsigned."""

    code = "membership"


class TokenError(ProtocolError):
    """A join token that is damaged, past its date, used by another device, or unknown here."""

    code = "token"


class EnrolmentError(ProtocolError):
    """A request to join that the server refuses, or a server that is not the one of the token."""

    code = "enrolment"


class SharedFileError(ProtocolError):
    """A file in a folder that others can write to is not one that is read."""

    code = "shared-file"


class OlderList(MembershipError):
    """A member list that is not newer than one already seen."""

    code = "older-list"


class SecretSharingError(ProtocolError):
    """Shares that do not open, do not combine, or rebuild a different secret than announced."""

    code = "secret-sharing"


class QuantiserError(ProtocolError, ConfigError):
    """No ring and step exist that rule out overflow for these bounds."""

    code = "quantiser"
    exit_code = 2


class PolicyRefusal(ProtocolError):
    """The owner's policy does not allow what the server asks for."""

    code = "policy-refusal"


# --- the round ------------------------------------------------------------------------------------


class RoundFailed(PenchantError):
    """A round ended without a result; finished rounds are kept."""

    code = "round-failed"


class TooFewDevices(RoundFailed):
    """Fewer devices are available or answered than the configuration needs."""

    code = "too-few-devices"


class TooManyDropouts(RoundFailed):
    """A third of the roster or more was lost; nothing was revealed."""

    code = "too-many-dropouts"


class NotUnmasked(RoundFailed):
    """The sum could not be unmasked although enough devices answered."""

    code = "not-unmasked"


class SumRefused(RoundFailed):
    """An opened sum that no honest devices make, or factors from it that no device would take."""

    code = "sum-refused"


class DeviceError(PenchantError):
    """A device's own files, or its training, failed."""

    code = "device"


class UpstreamError(PenchantError):
    """Who writes responses for the owner can't be asked, or wrote none."""

    code = "upstream"


class LedgerError(DeviceError):
    """What a device knows of the privacy it has spent was changed or set back."""

    code = "ledger"


class JournalError(PenchantError):
    """The journal or a checkpoint can't be read or written."""

    code = "journal"


class WorkerLost(JournalError):
    """A process that serves simulated devices is gone, with the attempts that were open in it."""

    code = "worker-lost"


class SuperLinkError(JournalError):
    """The SuperLink can't be reached, or does not do what it was asked for: later it may."""

    code = "superlink"


class ConsoleError(PenchantError):
    """The operator's console can't keep its own file, or can't do what it was asked for."""

    code = "console"


class DeliveryError(PenchantError):
    """A notice was not taken by whoever it is for; it is tried again."""

    code = "delivery"


# --- a fleet --------------------------------------------------------------------------------------


class EnrolmentPending(PenchantError):
    """The authority has not answered a request to join yet: ask again later."""

    code = "enrolment-pending"


class GatewayError(PenchantError):
    """A process of the server can't be configured, started or kept up."""

    code = "gateway"
