"""The typed error tree. Every error says in one line what is wrong and what to do.

``exit_code`` follows the command line's convention: 2 for wrong use (bad input, refused before
anything was changed), 1 for a failure during work. Messages never carry secrets or anybody's data.
"""

from __future__ import annotations

__all__ = [
    "AgreementError",
    "BaseModelError",
    "CertificateError",
    "CodecError",
    "ConfigError",
    "ConsoleError",
    "DataError",
    "DeviceError",
    "EnrolmentError",
    "EnrolmentPending",
    "GatewayError",
    "JournalError",
    "MembershipError",
    "NotUnmasked",
    "OlderList",
    "PenchantError",
    "PolicyRefusal",
    "ProtocolError",
    "QuantiserError",
    "RoundFailed",
    "RunDirectoryError",
    "SecretSharingError",
    "SignatureError",
    "StageError",
    "TokenError",
    "TooFewDevices",
    "TooManyDropouts",
    "UsageError",
]


class PenchantError(Exception):
    """Root of all errors that penchant raises on purpose."""

    exit_code = 1


# --- wrong use: refused before anything is changed ------------------------------------------------


class UsageError(PenchantError):
    """The call is wrong; nothing was changed."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value or key is unknown, missing or out of range."""


class DataError(UsageError):
    """A data set or a row of it can't be used."""


class BaseModelError(UsageError):
    """A base model is missing, is not what its digest says, or has no such modules."""


class RunDirectoryError(UsageError):
    """A run directory is in use, belongs to another configuration, or is not one."""


# --- the wire and the protocol --------------------------------------------------------------------


class ProtocolError(PenchantError):
    """A message, or its sender, broke the protocol."""


class CodecError(ProtocolError):
    """Bytes that are not a well-formed message of this version."""


class StageError(ProtocolError):
    """A message that does not belong to the current stage, round, attempt or run."""


class AgreementError(ProtocolError):
    """Parties do not see the same thing: context digests, rosters or survivor lists differ."""


class SignatureError(ProtocolError):
    """A signature is missing, wrong, repeated or by someone outside the list."""


class CertificateError(ProtocolError):
    """An identity without a valid certificate of the enrolment authority."""


class MembershipError(ProtocolError):
    """A revoked identity, or a member list that is older than one already seen, stale or unsigned."""


class TokenError(ProtocolError):
    """A join token that is damaged, past its date, used by another device, or unknown here."""


class EnrolmentError(ProtocolError):
    """A request to join that the server refuses, or a server that is not the one of the token."""


class OlderList(MembershipError):
    """A member list that is not newer than one already seen."""


class SecretSharingError(ProtocolError):
    """Shares that do not open, do not combine, or rebuild another secret than announced."""


class QuantiserError(ProtocolError, ConfigError):
    """No ring and step exist that rule out overflow for these bounds."""

    exit_code = 2


class PolicyRefusal(ProtocolError):
    """The owner's policy does not allow what the server asks for."""


# --- the round ------------------------------------------------------------------------------------


class RoundFailed(PenchantError):
    """A round ended without a result; finished rounds stand."""


class TooFewDevices(RoundFailed):
    """Fewer devices are available or answered than the configuration needs."""


class TooManyDropouts(RoundFailed):
    """A third of the roster or more was lost; nothing was revealed."""


class NotUnmasked(RoundFailed):
    """The sum could not be unmasked although enough devices answered."""


class DeviceError(PenchantError):
    """A device's own files, or its training, failed."""


class JournalError(PenchantError):
    """The journal or a checkpoint can't be read or written."""


class ConsoleError(PenchantError):
    """The operator's console can't keep its own file, or can't do what it was asked for."""


# --- a fleet --------------------------------------------------------------------------------------


class EnrolmentPending(PenchantError):
    """The authority has not answered a request to join yet: ask again later."""


class GatewayError(PenchantError):
    """A process of the server can't be configured, started or kept up."""
