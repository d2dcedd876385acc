"""Airflow's web pages in a real browser, as a person meets them."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.support.versions import at_least

CHROMIUM = "/usr/bin/chromium"
OPTIONS = (
    # What root, and a container, need.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PICTURES = "OPENMARKETS_PICTURES"
"""The environment variable that names the folder where pictures of the pages go; without it none are taken."""
PATIENCE = 60
"""Seconds that anything on a page may take, on a busy machine."""
JSON_SECTION = "Extra Fields JSON"
HEADINGS = {"Extra Fields": "Openmarkets Fields"}
"""What Airflow 3.4 calls a section of the form: each but that of JSON is a heading there, and always open."""
# It is gone two seconds after it came, which is less than looking for it may take.
KEEP_NOTICE = """() => new MutationObserver(() => {
    const box = document.querySelector("[role=region][aria-label^=Notifications] [role=status]")
    if (box) window.notice ??= ["title", "description"].map(part => box.querySelector(`[data-part=${part}]`).innerText)
}).observe(document.body, {childList: true, subtree: true})"""


class Browser:
    """Chromium without a window, on the pages of one Airflow.

    :param base_url: Airflow's.
    :param folder: where all answers are kept that it gets.
    """

    def __init__(self, base_url: str, folder: Path) -> None:
        self._base_url = base_url
        self._archive = folder / "answers.har"
        self.texts: dict[str, str] = {}
        """The HTML of the pages as they were looked at, by name."""

    def __enter__(self) -> Self:
        self._playwright = sync_playwright().start()
        try:
            self._chromium = self._playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
            self._context = self._chromium.new_context(
                base_url=self._base_url,
                viewport={"width": 1280, "height": 800},
                record_har_path=self._archive,
                record_har_content="embed",
                # But the scripts of the pages, which are files of Airflow's package.
                record_har_url_filter=re.compile(r"^http(?!.*/static/)"),
            )
            self.page: Page = self._context.new_page()
            self.page.set_default_timeout(PATIENCE * 1000)
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        self._chromium.close()
        self._playwright.stop()

    def look(self, name: str) -> str:
        """Return the text that is visible; keep the page's HTML."""
        self.texts[name] = self.page.content()
        return self.page.locator("body").inner_text()

    def picture(self, name: str) -> None:
        """Take a picture of the page, if pictures are wanted."""
        if folder := os.environ.get(PICTURES):
            # The mouse would leave a tooltip.
            self.page.mouse.move(0, 0)
            self.page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")

    def trigger(self, dag_id: str) -> Any:
        """Submit the unchanged trigger form of a paused DAG, but leave the DAG paused. Return the run."""
        self.page.goto(f"/dags/{dag_id}")
        self.page.get_by_role("button", name="Trigger").first.click()
        form = self.page.get_by_role("dialog")
        # The box itself is hidden below its picture.
        form.get_by_text(f"Unpause {dag_id} on trigger").click()
        expect(form.get_by_role("checkbox")).not_to_be_checked()
        self.picture(f"trigger_{dag_id}")
        with self.page.expect_response(
            lambda answer: answer.request.method == "POST" and "dagRuns" in answer.url
        ) as run:
            form.get_by_role("button", name="Trigger", exact=True).click()
        form.wait_for(state="hidden")
        return run.value.json()

    def answers(self) -> dict[str, bytes]:
        """Return head and body of every answer that the browser has got; it gets no more after this."""
        self._context.close()
        found = {}
        for number, entry in enumerate(json.loads(self._archive.read_text())["log"]["entries"]):
            response = entry["response"]
            content = response["content"]
            text = content.get("text", "")
            body = base64.b64decode(text) if content.get("encoding") == "base64" else text.encode()
            head = json.dumps([response["headers"], response["redirectURL"]]).encode()
            found[f"{number} {entry['request']['url']}"] = head + body
        return found

    def task(self, run: dict[str, str], task_id: str, tab: str = "") -> None:
        """Open the page of a task of a DAG run, on one of its tabs; the log is the first."""
        where = f"/dags/{run['dag_id']}/runs/{quote(run['dag_run_id'], safe='')}/tasks/{task_id}"
        self.page.goto(f"{where}/{tab}" if tab else where)


class Connections:
    """Admin > Connections."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.page = browser.page

    def open(self) -> None:
        """Find the way from the home page."""
        self.page.goto("/")
        self.page.get_by_role("button", name="Admin").click()
        self.page.get_by_role("menuitem", name="Connections").click()
        self.page.get_by_role("button", name="Add Connection").wait_for()

    def go(self) -> None:
        """Go there by the address."""
        # A form that is opened before this came shows the keys of Extra, and no field of ours.
        with self.page.expect_response("**/ui/connections/hook_meta") as fields:
            self.page.goto("/connections")
        fields.value.finished()

    def row(self, conn_id: str) -> Locator:
        """Return the row of a connection in the list."""
        cell = self.page.get_by_role("cell", name=conn_id, exact=True)
        return self.page.get_by_role("row").filter(has=cell)

    def add(self, conn_id: str, conn_type: str) -> Form:
        """Start to add one. Its type is chosen by typing its first letters."""
        self.page.get_by_role("button", name="Add Connection").click()
        form = Form(self.page)
        form.dialogue.get_by_label("Connection ID").fill(conn_id)
        form.dialogue.get_by_label("Connection Type").fill(conn_type[:6])
        self.page.get_by_role("option", name=conn_type, exact=True).click()
        return form

    def edit(self, conn_id: str) -> Form:
        """Start to edit one."""
        self.row(conn_id).get_by_role("button", name="Edit Connection").click()
        return Form(self.page)

    def test(self, conn_id: str) -> tuple[str, str, str]:
        """Push Test. Return the heading and text of the message, and the colour of the button's icon."""
        # A page without the message of the last test, which stays while the mouse is on it.
        self.go()
        self.page.evaluate(KEEP_NOTICE)
        self.row(conn_id).get_by_role("button", name="Test Connection").click()
        title, text = self.page.wait_for_function("() => window.notice").json_value()
        sign = self.row(conn_id).get_by_role("button", name="Test Connection").locator("svg")
        return title, text, str(sign.get_attribute("color"))


class Form:
    """The form of one connection, in its dialogue."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.dialogue = page.get_by_role("dialog")
        self.dialogue.get_by_role("button", name="Save").wait_for()

    def open(self, section: str) -> None:
        """Open one of the accordions, which closes the others."""
        if at_least("3.4") and section != JSON_SECTION:
            self.dialogue.get_by_role("heading", name=HEADINGS.get(section, section), exact=True).wait_for()
            return
        button = self._page.get_by_role("button", name=section, exact=True)
        item = self.dialogue.locator("[data-scope=accordion][data-part=item]").filter(has=button)
        button.click()
        # Not by its data-state, which it has for the time of an animation only.
        item.get_by_role("region").get_by_role("group").first.wait_for()

    def wait_for_sections(self, *sections: str) -> None:
        """Wait until there are these sections and no others."""
        if at_least("3.4"):
            for section in sections:
                self.dialogue.get_by_text(HEADINGS.get(section, section), exact=True).wait_for()
            # The title of the dialogue has the place of that of JSON, which is an accordion.
            expect(self.dialogue.get_by_role("heading")).to_have_count(len(sections), timeout=PATIENCE * 1000)
            return
        buttons = self.dialogue.locator("[data-scope=accordion][data-part=item-trigger]")
        expect(buttons).to_have_text(sections, timeout=PATIENCE * 1000)

    def begin_json(self, text: str) -> None:
        """Write into Extra Fields JSON, after its first brace."""
        self.open(JSON_SECTION)
        editor = self.dialogue.get_by_role("textbox", name="Editor content")
        editor.press("Control+Home")
        editor.press("ArrowRight")
        # All at once: typed key by key, it would be completed meanwhile.
        self._page.keyboard.insert_text(text)
        # It is taken when the editor is left. A click on an accordion would be lost, since that moves them.
        self.dialogue.get_by_role("heading").first.click()

    def field(self, label: str) -> Locator:
        """Return what belongs to a label: the input and its help."""
        return self.dialogue.get_by_role("group").filter(has=self._page.get_by_text(label, exact=True))

    def input(self, label: str) -> Locator:
        """Return the input of a field that text or a number can be written into."""
        field = self.field(label)
        return field.get_by_role("textbox").or_(field.get_by_role("spinbutton"))

    def fill(self, values: Mapping[str, str]) -> None:
        """Write into fields, by their labels."""
        for label, value in values.items():
            self.input(label).fill(value)

    def choose(self, label: str, *options: str) -> None:
        """Choose from a drop-down list, one after the other where several can be."""
        for option in options:
            self.field(label).get_by_role("combobox").click()
            self._page.get_by_role("option", name=option, exact=True).click()

    def save(self) -> None:
        """Save, and wait until it is."""
        self.dialogue.get_by_role("button", name="Save").click()
        self.dialogue.wait_for(state="hidden")
        self._page.get_by_role("button", name="Add Connection").wait_for()


def rendered_template(page: Page, field: str) -> Any:
    """Decode what Rendered Templates shows of a field as JSON."""
    cell = page.get_by_role("row").filter(has=page.get_by_role("cell", name=field, exact=True))
    code = cell.locator("code")
    code.wait_for()
    # Before each line is its number.
    return json.loads("".join(code.locator("span:not(:has(span)):not(.linenumber)").all_inner_texts()))
