"""`penchant device chat`: a conversation with the owner's personal policy, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.terminal import say, say_piece
from penchant.common.wording import counted
from penchant.deploy.cli.device.options import HERE, Ask, HomeOption, open_device
from penchant.deploy.cli.drawing import working
from penchant.deploy.cli.errors import command, notice

if TYPE_CHECKING:
    from penchant.client.device.conversation import Conversation

__all__ = ["app"]

app = typer.Typer()
QUIT, ANEW = "/quit", "/new"


@command(app)
def chat(
    tokens: Annotated[
        int, typer.Option("--tokens", help="The most tokens that an answer may have.", min=1)
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", help="The sampling temperature; a higher one draws more freely.")
    ] = 0.8,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="With the same seed the same messages get the same answers.", min=0, max=2**62
        ),
    ] = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Talk to your personal policy; it writes on this device. Nothing is kept of it, and nothing leaves.

    It needs a model that writes: objective dpo, ipo or the like.
    """
    from penchant.client.device.conversation import Conversation

    device = open_device(home, passphrase)
    with working("loading your model"):
        conversation = Conversation(device, tokens=tokens, temperature=temperature, seed=seed)
    if device.standing().newer:
        notice("newer choices are not in the model: `penchant device train`")
    say(f"{QUIT} or Ctrl-D ends it, {ANEW} begins anew, Ctrl-C stops an answer")
    _talk(conversation)


# --- inner parts --------------------------------------------------------------------------------------


def _talk(conversation: Conversation) -> None:
    """Message after message, until the owner quits."""
    left_out = 0
    while True:
        try:
            said = input("you > ").strip()
        except (EOFError, KeyboardInterrupt):
            say()
            return
        if said == QUIT:
            return
        if said == ANEW:
            conversation.begin_anew()
        elif said:
            try:
                conversation.answer(said, say_piece)
            except KeyboardInterrupt:
                say(" …")
                continue
            say()
            if conversation.left_out > left_out:
                notice(f"the model has no room for the first {counted(conversation.left_out, 'message')}")
            left_out = conversation.left_out
