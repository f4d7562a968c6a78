"""What all of the owner's pages share, and the entrances through which a request comes to one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from penchant.client.device.device import Device
from penchant.common.data.importers.reading import Found
from penchant.common.errors import PenchantError
from penchant.common.printable import one_line
from penchant.deploy.device_page.asking import AskDesk
from penchant.deploy.device_page.background import BackgroundWork
from penchant.deploy.device_page.entrance import Entrance
from penchant.deploy.device_page.picture import PictureBook
from penchant.deploy.device_page.sitting import Sitting
from penchant.deploy.device_page.uploads import UploadForm, read_upload
from penchant.server.console.at_once import HTTPError
from penchant.server.console.forms import Endpoint, Form, posted

__all__ = ["TEXT_MOST", "PageContext", "PageRequest", "PageView", "acted", "problem", "shown", "uploaded"]

PATIENCE = 2.0  # seconds for which a request waits for the model
TEXT_MOST = 20_000  # characters of the owner's in one text
FORM_MOST = 3 * 12 * TEXT_MOST + 4096  # bytes of a prompt and two responses: four a character at most, each
# of them three as a form has it


@dataclass
class PageContext:
    """What all pages share.

    Attributes:
        device: the owner's.
        entrance: who is let in.
        templates: the pages' templates.
        sitting: the questions of this sitting.
        model: held by whoever uses the device's model: one thread may at a time.
        work: training and forgetting.
        asking: responses that are being written.
        pictures: what was last seen of the model.
        desk: what was asked last.
        close: ends the program.
        waiting: a file of several people that was handed over, until its owner says who they are: a name for
            this one, the file's, and what is in it.
        flash: what the next page says, once.
    """

    device: Device
    entrance: Entrance
    templates: Environment
    sitting: Sitting
    model: threading.RLock
    work: BackgroundWork
    asking: BackgroundWork
    pictures: PictureBook
    desk: AskDesk
    close: Callable[[], None]
    waiting: tuple[str, str, Found] | None = field(default=None, repr=False)
    flash: str = ""

    @contextmanager
    def at_model(self) -> Iterator[None]:
        """Hold the model for something short. HTTPError where it is at work for longer: a browser has six
        connections, and a page that keeps one waiting until training ends would soon have none."""
        if not self.model.acquire(timeout=PATIENCE):
            raise HTTPError("the model is at work; nothing was done, try again in a moment", status=503)
        try:
            yield
        finally:
            self.model.release()

    def forget(self) -> None:
        """Keep nothing in memory of what the owner chose, asked or handed over, and show no question before
        the sitting is prepared anew; whoever calls holds the model."""
        self.waiting = None
        self.let_go()

    def let_go(self) -> None:
        """Keep nothing in memory that choices may be read in, as before one is deleted or all are."""
        self.pictures.forget()
        self.desk.forget()
        self.sitting.forget()

    def let_go_soon(self) -> None:
        """`let_go` once the model is free, and prepare the sitting anew; nobody waits for it."""

        def let_go() -> None:
            with self.model:
                self.let_go()
                self.sitting.prepare()

        threading.Thread(target=let_go, daemon=True).start()

    def take_flash(self) -> str:
        """What is to be said, which is said by that."""
        said, self.flash = self.flash, ""
        return said


@dataclass
class PageRequest:
    """One request of the owner's browser."""

    context: PageContext
    http_request: Request
    form: Form = field(default_factory=dict, repr=False)
    upload: UploadForm | None = None

    @property
    def path(self) -> str:
        """The page that is asked for, without the address that nobody can guess."""
        return self.http_request.url.path.removeprefix(self.context.entrance.root) or "/"

    @property
    def device(self) -> Device:
        """The owner's."""
        return self.context.device

    def asked(self, key: str, most: int = 200) -> str:
        """A parameter of the address, cut to a length."""
        return self.http_request.query_params.get(key, "")[:most]

    def number(self, text: str, otherwise: int = 0) -> int:
        """A whole number that a form or an address holds; another one where it is none."""
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise

    @property
    def by_script(self) -> bool:
        """Whether a script asks, to put the answer in the place of a part of its page."""
        return "hx-request" in self.http_request.headers

    def render(self, template: str, code: int = 200, **page: Any) -> HTMLResponse:
        """A page made from a template, with an HTTP status."""
        return self.part(template, code, flash=self.context.take_flash(), **page)

    def part(self, template: str, code: int = 200, **page: Any) -> HTMLResponse:
        """A part of a page; what the next page is to say stays to be said."""
        entrance = self.context.entrance
        around = {"root": entrance.root, "path": self.path, "csrf": entrance.csrf}
        return HTMLResponse(self.context.templates.get_template(template).render(around | page), code)

    def progress(self, work: BackgroundWork, now: str, done: Callable[[], Response], place: str) -> Response:
        """How far the work is, which the page goes on asking `now`.

        Once it is done, the part of the page that shows what came of it, which goes to its `place`: the rest
        stays as it is, with whatever is being typed there.
        """
        state = work.state
        if state is not None and state.running:
            return self.part("work_now.html.j2", state=state, now=now)
        response = done()
        response.headers["HX-Retarget"], response.headers["HX-Reswap"] = place, "outerHTML"
        return response

    def go(self, path: str, say: str = "") -> RedirectResponse:
        """To another page, which says `say`."""
        self.context.flash = say
        return RedirectResponse(f"{self.context.entrance.root}{path}", 303)


PageView = Callable[[PageRequest], Response]


def shown(context: PageContext, view: PageView) -> Endpoint:
    """The entrance of a page."""

    async def endpoint(request: Request) -> Response:
        if not _is_known(context, request):
            return _stranger(context, request)
        return await run_in_threadpool(_answered, PageRequest(context, request), view)

    return endpoint


def acted(context: PageContext, view: PageView) -> Endpoint:
    """The entrance of a form."""

    def work(request: Request, form: Form) -> Response:
        if not _is_known(context, request):
            return _stranger(context, request)
        return _checked(PageRequest(context, request, form), form, view)

    return posted(work, FORM_MOST)


def uploaded(context: PageContext, view: PageView) -> Endpoint:
    """The entrance of a form with a file; of a stranger nothing is read."""

    async def endpoint(request: Request) -> Response:
        if not _is_known(context, request):
            return _stranger(context, request)
        try:
            upload = await read_upload(request)
        except HTTPError as refused:
            return _refusal(PageRequest(context, request), refused.status, str(refused))
        page_request = PageRequest(context, request, upload.fields, upload)
        return await run_in_threadpool(_checked, page_request, upload.fields, view)

    return endpoint


def problem(context: PageContext, status: int, title: str, text: str) -> Response:
    """A page for anybody: it says nothing but what went wrong."""
    html = context.templates.get_template("stranger.html.j2").render(title=title, text=text)
    return HTMLResponse(html, status)


# --- inner parts --------------------------------------------------------------------------------------


def _is_known(context: PageContext, request: Request) -> bool:
    return context.entrance.knows(request.headers.get("cookie", ""))


def _stranger(context: PageContext, request: Request) -> Response:
    text = (
        "This page is for the browser that opened the link of `penchant device open`, and no other; where "
        "nobody used it for long, or another page was opened since, it has ended."
    )
    return problem(context, 403, "Who are you?", text)


def _checked(page_request: PageRequest, form: Mapping[str, str], view: PageView) -> Response:
    if not page_request.context.entrance.sent_by_us(form.get("csrf", "")):
        return _refusal(page_request, 403, "This form is too old, or not ours. Nothing was done; try again.")
    return _answered(page_request, view)


def _answered(page_request: PageRequest, view: PageView) -> Response:
    try:
        return view(page_request)
    except HTTPError as refused:
        return _refusal(page_request, refused.status, str(refused))
    except PenchantError as error:
        return _refusal(page_request, 422, str(error))


def _refusal(page_request: PageRequest, status: int, text: str) -> Response:
    """A page that says no, and why."""
    return page_request.render("no.html.j2", status, text=one_line(text, 500))
