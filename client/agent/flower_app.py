"""The relay: a thin Flower ClientApp that forwards each exchange to the device's agent.

It imports neither torch nor anything private. What it forwards are opaque bytes; what comes back is
the agent's reply, or one abort code, never the text of an exception (docs/protocol.md#abort-codes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from penchant.common.secagg.stages import STAGES
from penchant.common.wire.codec import encode
from penchant.common.wire.flower import pack, stage_of, unpack
from penchant.common.wire.messages import Abort, abort_code

__all__ = ["Answer", "answered", "build_app"]

log = logging.getLogger(__name__)

STAGE_SHOWN = 40  # characters of what the server calls a stage

Answer = Callable[[str, bytes], bytes]
"""An agent's entrance: (stage, payload) -> reply payload."""


def answered(message: Message, answer: Answer) -> Message:
    """The reply to a message: the agent's, or one abort code."""
    try:
        reply = answer(stage_of(message.metadata.message_type), unpack(message.content))
    except Exception as error:  # Flower would send its text to the server
        log.warning("no answer in %r: %s", message.metadata.message_type[:40], type(error).__name__)
        reply = encode(Abort(abort_code(error)))
    return Message(pack(reply), reply_to=message)


def build_app(agent_of: Callable[[Context], Answer]) -> ClientApp:
    """A ClientApp whose device is the agent that `agent_of` finds for a message's context."""
    app = ClientApp()

    def relay(message: Message, context: Context) -> Message:
        return answered(message, lambda stage, payload: agent_of(context)(stage, payload))

    for stage in STAGES:
        app.train(stage)(relay)
    return app
