"""Who writes responses to the owner's prompts: a server that the owner names, or a model on this device."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from typing import Protocol

from penchant.client.device.conversation_form import response_of
from penchant.client.device.device import Device
from penchant.client.learning.best_of_n import Generator
from penchant.common.errors import DataError, UpstreamError
from penchant.common.model.prompt_form import Prompt
from penchant.common.printable import one_line
from penchant.deploy.device_api.dialects import ApiRefusal
from penchant.deploy.device_api.upstream import Json, PassedOn, Upstream, UpstreamSettings

__all__ = ["GeneratorWriter", "PolicyWriter", "ResponseWriter", "UpstreamWriter", "different"]

WORD_MOST = 200  # characters of what an upstream says of its error
TOKENS = 128  # of a response that a model on this device writes


class ResponseWriter(Protocol):
    """Writes responses. One thread may use it at a time.

    Attributes:
        name: what the owner calls it.
        address: where prompts go; empty where they stay on this machine.
    """

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...

    def write(self, prompt: str, count: int) -> list[str]:
        """Different responses to a prompt, `count` at most and one at least. UpstreamError without any."""
        ...


class UpstreamWriter:
    """A server that speaks OpenAI's API. Only the URL of the settings is ever asked, whatever it answers.

    Args:
        settings: which server, and its key, which is shown to nobody else.
        model: which of its models writes; empty for the first that it names.
    """

    def __init__(self, settings: UpstreamSettings, model: str = "") -> None:
        self._settings = settings
        self._model = model

    @property
    def name(self) -> str:
        """The model's name, where the owner gave one."""
        return self._model

    @property
    def address(self) -> str:
        """The server's base URL, which holds no key."""
        return self._settings.url

    def write(self, prompt: str, count: int) -> list[str]:
        """As `ResponseWriter`. UpstreamError in one line, whatever goes wrong there."""
        try:
            completions = asyncio.run(self._completions(prompt, count))
        except ApiRefusal as error:
            raise UpstreamError(str(error)) from None
        except PassedOn as error:
            said = self._without_key(_word(error.body))
            raise UpstreamError(f"{error}{f': {said}' if said else ''}") from None
        texts: list[str] = []
        for choice in (choice for one in completions for choice in one["choices"]):
            try:
                texts.append(response_of(choice["message"], conversation=False))
            except DataError:  # a call of a tool, say: nothing that could be read and ranked
                continue
        return different(texts, count)

    async def _completions(self, prompt: str, count: int) -> list[Json]:
        upstream = Upstream(self._settings)
        async with upstream.running():
            model = self._model or _first_model(await upstream.models())
            messages = [{"role": "user", "content": prompt}]
            return await upstream.completions({"model": model, "messages": messages}, count)

    def _without_key(self, text: str) -> str:
        """What is shown of an upstream's error: some quote the key that they were given."""
        key = self._settings.key
        return one_line(text.replace(key, "…") if key else text, WORD_MOST)


class GeneratorWriter:
    """A causal model on this device, loaded when it is first asked.

    name: as for `Generator`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._generator: Generator | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return self._name

    @property
    def address(self) -> str:
        """Nothing leaves."""
        return ""

    def write(self, prompt: str, count: int) -> list[str]:
        """As `ResponseWriter`; errors as `Generator` too. Each time it writes others."""
        if self._generator is None:
            self._generator = Generator(self._name)
        seed = secrets.randbits(31)
        return different(self._generator.responses(prompt, count, seed=seed, tokens=TOKENS), count)


class PolicyWriter:
    """The owner's own policy: base model, shared and personal factors.

    Whoever calls `write` holds the device's model: base model and factors are those that rank.
    A policy that was trained meanwhile writes the next time.
    """

    name, address = "your personal model", ""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._made: tuple[int, Generator] | None = None

    def write(self, prompt: str, count: int) -> list[str]:
        """As `ResponseWriter`; errors as `Device.generator` too. Each time it writes others."""
        version = self._device.vault.version()
        if self._made is None or self._made[0] != version:
            self._made = version, self._device.generator()
        conversation = self._device.knows_conversations()
        asked: Prompt = [{"role": "user", "content": prompt}] if conversation else prompt
        seed = secrets.randbits(31)
        return different(self._made[1].responses(asked, count, seed=seed, tokens=TOKENS), count)


def different(texts: Sequence[str], count: int) -> list[str]:
    """The first `count` different texts that are not blank. UpstreamError without any."""
    found = list(dict.fromkeys(text.strip() for text in texts if text.strip()))[:count]
    if not found:
        raise UpstreamError("no response came that is a text; try again, or another model")
    return found


def _first_model(listed: bytes) -> str:
    """The first name in a list of models."""
    try:
        name = json.loads(listed)["data"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str):
        raise UpstreamError("the upstream names no model; give one with --upstream-model")
    return name


def _word(body: bytes) -> str:
    """What an error of an upstream says, in whichever of the usual forms; empty where it is in none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for _ in range(2):
        if isinstance(found, dict):
            found = next((found[key] for key in ("error", "message", "detail") if key in found), None)
    return found if isinstance(found, str) else ""
