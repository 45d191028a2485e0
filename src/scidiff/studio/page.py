"""The page: what it shows, and what happens when its controls are used.

Every visitor has a page of their own, a :class:`Visit`; the model, its cells and the desk at which the work is done are
shared. Whatever goes wrong is one line in the page, read out to those who cannot see it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from nicegui import context, events, ui

from scidiff.errors import InputError
from scidiff.studio import views
from scidiff.studio.session import MOST_CELLS, Attribute, Map, Result, Session, best, meanings
from scidiff.studio.work import Desk, Job, Stopped

T = TypeVar("T")
#: a request that is ready: takes ``on_cells``, returns what came out
Ask = Callable[..., Result]
#: sends what is in a field and empties it there and then: who types on is not overtaken by an answer
TAKE = (
    "emit(e.target.value); e.target.value = ''; "
    "e.target.dispatchEvent(new InputEvent('input', {inputType: 'deleteContent'}));"
)


class GeneField:
    """A field in which genes are typed, with completion, and those that were entered, each a button that removes it.

    Names are completed on the server: a browser need not know all genes of a genome. The list is the browser's own, so
    that it works with every keyboard, reader and phone.
    """

    def __init__(self, session: Session, label: str, *, trouble: Callable[[str], None]) -> None:
        self.session, self.trouble = session, trouble
        self.wishes: list[str] = []
        with ui.element("div").classes("genes"):
            self.input = ui.input(label, on_change=lambda event: self._offer(event.value)).props("outlined")
            self.offers = _completed(self.input)
            self.entered = ui.element("div").classes("row entered")
        self.input.on("keydown.enter", self._enter, js_handler=f"(e) => {{ {TAKE} }}")
        # a name that was chosen from the list, by whatever means, need not be confirmed
        self.input.on(
            "input",
            self._enter,
            js_handler=f"(e) => {{ if (!e.inputType || e.inputType === 'insertReplacementText') {{ {TAKE} }} }}",
        )

    def read(self) -> list[str]:
        """Return the wishes, with what is in the field; raises :class:`InputError` if that is none."""
        left = self.input.value or ""
        self.input.set_value("")
        if wrong := self._add(left):
            raise InputError(wrong)
        return list(self.wishes)

    def _enter(self, event: events.GenericEventArguments) -> None:
        self.trouble(self._add(str(event.args or "")))

    def _add(self, text: str) -> str:
        """Take what was typed, and return what is wrong with it."""
        known, wrong = self.session.entries(text)
        self.wishes = list(dict.fromkeys([*self.wishes, *known]))
        self._show()
        return wrong

    def _offer(self, text: str) -> None:
        self.offers.set_content(views.html("options", names=self.session.offers(text or "")))

    def _show(self) -> None:
        self.entered.clear()
        with self.entered:
            for wish in self.wishes:
                button = ui.button(f"{wish} ×", color=None, on_click=lambda wish=wish: self._remove(wish))
                button.classes("wish").props("no-caps unelevated")
                button.props["aria-label"] = f"remove {wish}"  # a name is no property to be parsed

    def _remove(self, wish: str) -> None:
        self.wishes.remove(wish)
        self._show()
        self.input.run_method("focus")


class Visit:
    """One visitor's page."""

    def __init__(self, session: Session, desk: Desk, landscape: Future[Map], folder: Path) -> None:
        self.session, self.desk, self.landscape, self.folder = session, desk, landscape, folder
        self.job: Job | None = None
        self.result: Result | None = None
        self.ranking: pd.DataFrame | None = None

    # ---- what there is -------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Build the page."""
        ui.add_css(views.style())
        ui.html(views.html("heading", name=self.session.name), sanitize=False, tag="header")
        self._overview()
        self._questions()
        self.answer = Part("cells", "Cells", shown=False)
        self.causes = Part("causes", "What would cause it", shown=False)
        self.take = Part("files", "Take it with you", shown=False)
        self._work()
        ui.timer(0.3, self._look)
        context.client.on_delete(self._stop)

    def _overview(self) -> None:
        session = self.session
        with Part("model", "Model and data").body:
            with ui.element("div").classes("columns"):
                _html(views.html("facts", rows=session.about()))
                _drawn_when_done(_html("Laying out the real cells …").classes("aside"), self.landscape)
                with ui.element("div"):
                    for stage, rows in session.training().items():
                        _html(views.course(stage, rows))
            groups = session.groups()
            with ui.element("details"):
                _html(f"{len(groups):,} conditions of real cells", tag="summary")
                _html(views.table(groups, label="Conditions of real cells"))

    # ---- what can be asked ---------------------------------------------------------------------------------------

    def _questions(self) -> None:
        with Part("ask", "Ask for cells").body:
            with ui.tabs().props("align=left no-caps inline-label") as tabs:
                by_genes, by_condition = ui.tab("with a phenotype"), ui.tab("of a condition")
            with ui.tab_panels(tabs, value=by_genes).props("animated=false").classes("plain"):
                with ui.tab_panel(by_genes):
                    self._design_form()
                with ui.tab_panel(by_condition):
                    self._generate_form()

    def _design_form(self) -> None:
        _html(views.html("how_to_name_genes"))
        with ui.element("div").classes("form"):
            up = GeneField(self.session, "Genes that shall be up", trouble=self.trouble)
            down = GeneField(self.session, "Genes that shall be down", trouble=self.trouble)
            condition = _fields(self.session.attributes(context_only=True))
            n, seed = _number("Number of cells", 200), _number("Seed", 0)

        def design() -> Ask:
            asked = {name: field.value for name, field in condition.items()}
            n_cells, number = _whole(n, "the number of cells"), _whole(seed, "the seed")
            return partial(self.session.design, up.read(), down.read(), n_cells, asked, seed=number)

        self._go("Design cells", "designing cells", design)

    def _generate_form(self) -> None:
        with ui.element("div").classes("form"):
            condition = _fields(self.session.attributes())
            n, seed = _number("Number of cells", 200), _number("Seed", 0)

        def generate() -> Ask:
            asked = {name: field.value for name, field in condition.items()}
            n_cells = _whole(n, "the number of cells")
            return partial(self.session.generate, asked, n_cells, seed=_whole(seed, "the seed"))

        self._go("Make cells", "making cells", generate)

    def _go(self, label: str, what: str, request: Callable[[], Ask]) -> None:
        ui.button(label, color=None, on_click=lambda: self._ask(what, request)).classes("go").props(
            "no-caps unelevated"
        )

    # ---- what happens --------------------------------------------------------------------------------------------

    async def _ask(self, what: str, request: Callable[[], Ask]) -> None:
        if self.job is not None:
            return
        try:
            ask = request()
        except InputError as error:
            return self.trouble(str(error))
        result = await self._do(what, lambda job: ask(on_cells=job.at))
        if result is None:
            return
        self.result, self.ranking = result, None
        with self.answer.refilled():
            _html(views.html("verdict", title=result.title, sentences=result.verdict))
            with ui.element("div").classes("columns"):
                place = _html("Laying out the cells …").classes("aside")
                with ui.element("div"):
                    if result.levels is not None:
                        _html(views.levels(result.levels))
                    _html(views.html("measures", rows=result.measures))
        self._offer_causes()
        self._offer_files()
        ui.run_javascript("document.getElementById('cells').scrollIntoView()")
        laid_out = self.desk.do(Job("laying out the cells"), lambda job: self.session.map(result))
        _drawn_when_done(place, laid_out)

    def _offer_causes(self) -> None:
        with self.causes.refilled():
            if why := self.session.nothing_to_rank():
                ui.label(why).classes("aside")
                return
            with ui.element("div").classes("row"):
                for label, undo in (("Rank what would cause it", False), ("Rank what would undo it", True)):
                    button = ui.button(label, color=None, on_click=lambda undo=undo: self._rank(undo=undo))
                    button.classes("go" if not undo else "quiet").props("no-caps unelevated")
            self.ranked = ui.element("div")

    async def _rank(self, *, undo: bool) -> None:
        result = self.result
        assert result is not None
        file = self._place("ranking.html")

        def rank(job: Job) -> pd.DataFrame:
            ranking = self.session.rank(result, undo=undo)
            self.session.write_ranking(result, ranking, file)
            return ranking

        ranking = await self._do("ranking causes", rank)
        if ranking is None or self.result is not result:
            return
        self.ranking = ranking
        self.ranked.clear()
        with self.ranked:
            _html("What would undo it" if undo else "What would cause it", tag="h3")
            for heading, rows in best(ranking):
                _html(heading, tag="h4")
                _html(views.table(rows, label=heading))
                _html(views.html("meanings", rows=meanings(rows)))
            ui.link(f"All {len(ranking):,} candidates with plots and evidence", self._url(file), new_tab=True)

    def _offer_files(self) -> None:
        with self.take.refilled(), ui.element("div").classes("row"):
            for label, name in (("Cells (AnnData, .h5ad)", "cells.h5ad"), ("Report (.html)", "report.html")):
                button = ui.button(label, color=None, on_click=lambda name=name: self._write(name))
                button.classes("quiet").props("no-caps unelevated")

    async def _write(self, name: str) -> None:
        result, ranking, file = self.result, self.ranking, self._place(name)
        assert result is not None

        def write(job: Job) -> Path:
            if name == "cells.h5ad":
                return self.session.write_cells(result, file)
            return self.session.write_report(result, ranking, file)

        if await self._do(f"writing {name}", write) is not None:
            ui.download.from_url(self._url(file), name)

    def _place(self, name: str) -> Path:
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        return folder / name

    def _url(self, file: Path) -> str:
        return f"./files/{file.relative_to(self.folder).as_posix()}"

    # ---- work ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with ui.element("div").classes("work"):
            self.trouble_line = ui.label().classes("trouble").props("role=alert")
            self.trouble_line.set_visibility(False)
            with ui.element("div").classes("going") as self.going:
                self.status = ui.label().props("role=status")
                self.bar = ui.linear_progress(show_value=False).props("aria-label=Progress rounded size=8px")
                ui.button("Stop", color=None, on_click=self._stop).classes("quiet").props("no-caps unelevated")
            self.going.set_visibility(False)

    def trouble(self, text: str) -> None:
        """Show one line of what went wrong; an empty one clears it."""
        self.trouble_line.set_text(text)
        self.trouble_line.set_visibility(bool(text))

    async def _do(self, what: str, do: Callable[[Job], T]) -> T | None:
        """Return what the desk makes of a job, None after telling what went wrong; clicks in between do nothing."""
        if self.job is not None:
            return None
        self.trouble("")
        self.job = job = Job(what)
        self._look()
        try:
            return await asyncio.wrap_future(self.desk.do(job, do))
        except Stopped:
            self.trouble("Stopped.")
        except InputError as error:
            self.trouble(str(error))
        except MemoryError:
            self.trouble("Not enough memory: ask for fewer cells.")
        except Exception as error:
            self.trouble(f"A bug: {type(error).__name__}: {' '.join(str(error).split())}; please report it.")
        finally:
            self.job = None
            self._look()
        return None

    def _stop(self) -> None:
        if self.job is not None:
            self.job.stop()

    def _look(self) -> None:
        """Bring the progress bar up to what the work has come to."""
        job = self.job
        self.going.set_visibility(job is not None)
        if job is None:
            return
        known = bool(job.total and job.done)
        self.bar.props(remove="indeterminate") if known else self.bar.props("indeterminate")
        self.bar.set_value(job.done / job.total if known else 0)
        if job.stopping:
            text = "stopping …"
        elif (now := self.desk.now) is not None and now is not job:
            text = f"waiting for the end of {now.what} …"
        else:
            text = f"{job.what}: {job.done:,} of {job.total:,}" if known else f"{job.what} …"
        self.status.set_text(text[:1].upper() + text[1:])


# ---- parts ---------------------------------------------------------------------------------------------------------


class Part:
    """A section of the page: a heading and a body that can be filled anew."""

    def __init__(self, name: str, heading: str, *, shown: bool = True) -> None:
        self.section = ui.element("section").props(f"aria-labelledby={name}")
        self.section.set_visibility(shown)
        with self.section:
            _html(views.html("section_heading", text=heading, id=name))
            self.body = ui.element("div")

    def refilled(self) -> ui.element:
        """Return the body, emptied and shown."""
        self.body.clear()
        self.section.set_visibility(True)
        return self.body


def _html(content: str, *, tag: str = "div") -> ui.html:
    """Add HTML from a template (which has escaped what is in it)."""
    return ui.html(content, sanitize=False, tag=tag)


def _drawn_when_done(place: ui.html, laid_out: Future[Map]) -> None:
    """Draw a map in its place as soon as the desk has made it."""

    def look() -> None:
        if laid_out.done():
            timer.deactivate()
            failed = laid_out.exception()
            place.set_content("These cells could not be laid out." if failed else views.cell_map(laid_out.result()))

    timer = ui.timer(0.5, look)


def _number(label: str, value: int) -> ui.number:
    low, high = (1, MOST_CELLS) if value else (0, None)
    return ui.number(label, value=value, min=low, max=high, precision=0).props("outlined").classes("short")


def _whole(field: ui.number, what: str) -> int:
    if field.value is None or field.value != int(field.value):
        raise InputError(f"{what} must be a whole number")
    return int(field.value)


def _fields(attributes: list[Attribute]) -> Mapping[str, Any]:
    """Add a field for every attribute and return them by name; their value is None where anything will do."""
    fields: dict[str, Any] = {}
    for one in attributes:
        label = one.label.replace("_", " ")
        if one.separator is not None:
            field: Any = ui.input(label)
            _completed(field, one.values)
        elif one.values:
            field = ui.select(list(one.values), label=label, with_input=True, clearable=True)
        else:
            field = ui.number(label)
        field.props("outlined stack-label")
        field.props["hint"] = one.hint or "any, if left open"
        fields[one.name] = field
    return fields


def _completed(field: ui.input, names: Iterable[str] = ()) -> ui.html:
    """Let the browser complete what is typed in a field, and return the list of names that it completes from."""
    place = f"offers-{secrets.token_hex(4)}"
    field.props(f"list={place} autocomplete=off autocapitalize=off spellcheck=false")
    return _html(views.html("options", names=names), tag="datalist").props(f"id={place}")
