"""The site that ``make docs`` builds: strictly, with links that lead somewhere, and nothing from other servers."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.search.en import SearchEnglish

from openmarkets_provider.get_provider_info import get_provider_info
from tests.support.pages import BLOCKS, PAGES, ROOT

HOME = "docs/index.html"
GENERATED = {"index.html", "genindex.html", "py-modindex.html", "search.html"}
"""By Sphinx, without a page of ours."""
LOADED = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "script": "src",
    "source": "src",
    "video": "src",
}
"""What a browser fetches by itself; a ``link`` and what style sheets name besides."""
PUBLIC = [
    "openmarkets_provider.queries",
    "openmarkets_provider.exceptions",
    "openmarkets_provider.conditions",
    "openmarkets_provider.client.cache.store",
    "openmarkets_provider.testing.store_contract",
    "openmarkets_provider.testing.pytest_plugin",
    "openmarkets_provider.sandbox.server",
]
"""In addition to what the provider info lists."""


class Page(HTMLParser):
    """What of a page is checked.

    :ivar ids: where a link can lead to.
    :ivar links: where its links lead to.
    :ivar loaded: what a browser fetches to show it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag == "link" and given.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.loaded.append(str(given["href"]))
        if tag in LOADED and given.get(LOADED[tag]):
            self.loaded.append(str(given[LOADED[tag]]))
        if tag == "img":
            self.images.append(given)


class Site:
    """The pages as they were built, by their file names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {path.relative_to(folder).as_posix(): Page(path) for path in sorted(folder.rglob("*.html"))}

    def own(self) -> Iterator[tuple[str, Page]]:
        return ((name, page) for name, page in self.pages.items() if name not in GENERATED)

    def target(self, page: str, link: str) -> tuple[Path, str]:
        """Return the file and the place in it that a link leads to."""
        where = urlsplit(link)
        path = (self.folder / page).parent / unquote(where.path) if where.path else self.folder / page
        return path.resolve(), unquote(where.fragment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """What ``make docs`` builds, by its own command, but somewhere else."""
    folder = tmp_path_factory.mktemp("site")
    (line,) = re.findall(r"-m (sphinx .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [word.replace("docs/_build", str(folder)) for word in shlex.split(line)]
    assert "-EW" in command
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Site(folder / "html")


def is_elsewhere(link: str) -> bool:
    return bool(urlsplit(link).netloc or urlsplit(link).scheme)


def test_every_page_is_there_and_can_be_reached_from_the_first(site: Site):
    built = {f"{path.relative_to(ROOT).as_posix().removesuffix('.md')}.html" for path in PAGES}
    assert {name for name, _ in site.own()} == built
    reached, ahead = set(), [HOME]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = (site.target(page, link)[0] for link in site.pages[page].links if not is_elsewhere(link))
        ahead += [path.relative_to(site.folder).as_posix() for path in targets if path.suffix == ".html"]
    assert built <= reached
    assert site.target("index.html", site.pages["index.html"].links[0])[0] == site.folder / HOME


def test_every_link_leads_to_a_file_and_to_a_place_in_it(site: Site):
    broken = []
    for name, page in site.pages.items():
        for link in page.links:
            if is_elsewhere(link):
                continue
            path, place = site.target(name, link)
            known = site.pages.get(path.relative_to(site.folder).as_posix())
            if not path.is_file() or (place and known is not None and place not in known.ids):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_links_to_other_sites_are_https_and_name_a_host(site: Site):
    links = {link for page in site.pages.values() for link in page.links if is_elsewhere(link)}
    assert links
    for link in links:
        where = urlsplit(link)
        assert where.scheme == "https", link
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", where.netloc), link
        assert not re.search(r"\s", link), link


def test_nothing_is_loaded_from_other_servers(site: Site):
    for name, page in site.pages.items():
        for link in page.loaded:
            assert not is_elsewhere(link) or link.startswith("data:"), f"{name}: {link}"
            assert link.startswith("data:") or site.target(name, link)[0].is_file(), f"{name}: {link}"
    for path in site.folder.rglob("*.css"):
        for link in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)", path.read_text()):
            assert not is_elsewhere(link) or link.startswith("data:"), f"{path.name}: {link}"


@cache
def search_index(site: Site) -> dict[str, Any]:
    text = (site.folder / "searchindex.js").read_text(encoding="utf-8")
    return dict(json.loads(text.removeprefix("Search.setIndex(").removesuffix(")")))


@pytest.mark.parametrize("words", ["cancel order", "backfill", "adjusted", "DataFrame", "notebook"])
def test_search_finds_a_heading(site: Site, words: str):
    """As the page of the search does it: it stems the words, and looks for pages that have all of them."""
    stems = map(SearchEnglish({}).stem, words.lower().split())
    # A number where there is one page only.
    pages = [search_index(site)["titleterms"].get(stem, []) for stem in stems]
    assert set.intersection(*({found} if isinstance(found, int) else set(found) for found in pages))


@pytest.mark.parametrize(
    ("words", "page"),
    {
        "quote": "docs/howto/quotes",
        "csv": "docs/etl",
        "postgres": "docs/howto/postgres",
        "429": "docs/howto/retries",
        "token": "docs/tokens",
        "backfill": "docs/howto/history",
        "holiday": "docs/howto/trading-days",
        "order": "docs/howto/orders",
        "cents": "docs/queries",
        "time zone": "docs/queries",
        "incremental": "docs/howto/incremental",
        "duplicate": "docs/etl",
        "s3": "docs/howto/s3",
        "delta": "docs/howto/lakehouse",
    }.items(),
)
def test_search_shows_a_page_among_the_first(site: Site, words: str, page: str):
    """As the page of the search does it: main entries of the index rank highest, if the words are half of them."""
    index = search_index(site)
    entries = [entry for entry in index["indexentries"] if words in entry and len(words) >= len(entry) / 2]
    first = {index["docnames"][at] for entry in entries for at, _, is_main in index["indexentries"][entry] if is_main}
    assert page in first
    assert len(first) <= 3


def test_keywords_are_those_of_pages():
    named = re.findall(r'^    "(docs/[\w/-]+)": "', (ROOT / "docs" / "conf.py").read_text(), re.MULTILINE)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / f"{name}.md").is_file()] == []


def test_code_is_highlighted(site: Site):
    for block in BLOCKS:
        page = site.pages[f"{block.page.removesuffix('.md')}.html"].text
        assert f'<div class="highlight-{block.kind} ' in page, block.where
    for name, page in site.own():
        for code in re.findall(r'<div class="highlight-(?:python|json|yaml|ini) .*?</pre>', page.text, re.DOTALL):
            assert re.search(r'<span class="[a-z]+\d?">', code), name


def test_images_say_what_they_show(site: Site):
    images = [image for _, page in site.own() for image in page.images]
    assert images
    assert [image for image in images if len(image.get("alt") or "") < 20] == []


# The API


def public_modules() -> list[str]:
    info = get_provider_info()
    of_airflow = [
        name
        for kind in ("hooks", "operators", "sensors", "triggers")
        for entry in info[kind]
        for name in entry["python-modules"]
    ]
    return PUBLIC + of_airflow + [entry["python-module"] for entry in info["transfers"]]


def public_names(module: ModuleType) -> list[str]:
    """Return the classes and functions that a module defines for others."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and getattr(value, "__module__", "") == module.__name__
    ]


@cache
def described(site: Site) -> set[str]:
    return {each for name, page in site.own() if name.startswith("docs/api/") for each in page.ids}


@pytest.mark.parametrize("name", public_modules())
def test_every_public_class_and_function_is_described(site: Site, name: str):
    names = {f"{name}.{each}" for each in public_names(importlib.import_module(name))}
    if name.endswith("pytest_plugin"):
        names = {f"{name}.openmarkets_sandbox"}
    assert names
    assert names - described(site) == set()


def test_what_the_pages_import_is_described(site: Site):
    """But for the store that a page takes as its example of one."""
    code = "".join(block.text for block in BLOCKS if block.kind == "python" and block.page != "CONTRIBUTING.md")
    imported = re.findall(r"^from (openmarkets_provider\.[\w.]+) import ([\w, ]+)$", code, re.MULTILINE)
    names = {f"{module}.{name}" for module, found in imported for name in found.split(", ")}
    assert len(names) >= 10
    assert names - described(site) == {"openmarkets_provider.client.cache.file.FileStore"}


@pytest.mark.parametrize("kind", ["operators", "sensors", "transfers"])
def test_operators_show_every_argument_that_their_text_describes(site: Site, kind: str):
    page = site.pages[f"docs/api/{kind}.html"].text
    found = re.findall(r'<dt class="sig sig-object py" id="([\w.]+)">(.*?)</dt>', page, re.DOTALL)
    assert found
    for path, signature in found:
        module, _, name = path.rpartition(".")
        text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
        shown = set(re.findall(r'class="sig-param"><span class="n"><span class="pre">(\w+)<', signature)) - {"kwargs"}
        report = set(re.findall(r":param (\w+):", text)) - {"kwargs", "outlets"}
        assert shown == report
        # The check of accounts makes its queries.
        own = (
            {"accounts", "openmarkets_conn_id"}
            if "accounts" in shown
            else {"query", "openmarkets_conn_id", "deferrable"}
        )
        assert own <= shown


def test_no_home_of_airflow_is_made_in_that_of_whoever_builds(tmp_path: Path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    code = "import runpy, os; runpy.run_path('docs/conf.py'); print(os.environ['AIRFLOW_HOME'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("docs/_build/airflow"), done.stderr
    assert list(tmp_path.iterdir()) == []
