"""The site that ``make docs`` builds of the pages here and of those at the top of the repository.

Sphinx reads the repository as it is: the links between the pages are the same there, on the site and in an editor.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx import addnodes
from sphinx.util.inspect import stringify_signature

from openmarkets_provider import __version__

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

# Airflow makes its home when it is imported, and not in that of whoever builds the pages.
os.environ.setdefault("AIRFLOW_HOME", str(Path(__file__).parent / "_build" / "airflow"))
logging.getLogger("airflow").setLevel(logging.WARNING)

project = "airflow-provider-openmarkets"
release = version = __version__
project_copyright = "the authors; Apache License 2.0"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"]
# Folders that need not be searched for pages.
exclude_patterns = [
    ".*",
    "dist",
    "demo_output",
    "docs/_build",
    "example_dags",
    "openmarkets_provider",
    "release",
    "tests",
]

myst_heading_anchors = 4

nitpicky = True
# What is not described here: types of Airflow, of Python and of other packages, and of this one's inside.
nitpick_ignore_regex = [("py:class", r"(?!openmarkets_provider\b).*")]
nitpick_ignore = [
    ("py:class", "openmarkets_provider.hooks.openmarkets.T"),
    ("py:class", "openmarkets_provider.client.client.OpenmarketsClient"),
    ("py:class", "openmarkets_provider.landing.destination.Source"),
    ("py:class", "openmarkets_provider.order_entry.intent.Intent"),
    ("py:exc", "AirflowNotFoundException"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
add_module_names = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "home.html"}
# Prompts are no part of a command.
copybutton_exclude = ".linenos, .gp"

KEYWORDS = {
    "docs/comparison": "http provider",
    "docs/connection": "connection, proxy, certificates, timeout, environments",
    "docs/errors": "errors, 401, 403, 404, 500, 503",
    "docs/etl": "csv, parquet, json lines, duplicates, decimals, lineage, assets",
    "docs/events": "triggers",
    "docs/fleet": "429, rate limits, throttling, metrics, variables",
    "docs/howto/adjusted-prices": "splits, dividends, duckdb, polars, pandas",
    "docs/howto/celery-kubernetes": "kubernetes, celery, redis",
    "docs/howto/completeness": "gaps, missing days",
    "docs/howto/containers": "docker, compose",
    "docs/howto/events": "events, announcements, news",
    "docs/howto/history": "backfills, history, catchup",
    "docs/howto/incremental": "incremental, watermarks",
    "docs/howto/lakehouse": "delta, iceberg",
    "docs/howto/notebook": "notebooks, dataframes, arrow, jupyter",
    "docs/howto/orders": "orders, duplicate orders, approval",
    "docs/howto/postgres": "postgres, postgresql, mysql, mariadb, sqlite, upsert",
    "docs/howto/quotes": "quotes, prices",
    "docs/howto/retries": "retries, 429, retry-after",
    "docs/howto/rotate-secret": "secrets, rotate, passwords",
    "docs/howto/s3": "s3, buckets, gcs, azure",
    "docs/howto/testing": "sandbox, mock, pytest, testing",
    "docs/howto/trading-days": "holidays, half days, calendar, trading days, sessions, schedule",
    "docs/howto/warehouses": "snowflake, bigquery, redshift, duckdb",
    "docs/not-covered": "streams, websockets",
    "docs/queries": "cents, time zones, units, queries, bars, trades",
    "docs/start": "install, quickstart",
    "docs/tokens": "tokens, oauth",
}
"""Words that people type into the search, by the page that comes first then."""


def add_keywords(app: Sphinx, doctree: nodes.document) -> None:
    """Add the keywords of a page as main entries of the index, which the search ranks highest."""
    words = KEYWORDS.get(app.env.docname, "").split(", ")
    doctree += addnodes.index(entries=[("single", word, "", "main", None) for word in words if word])


def with_directives(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn comments that hold a directive into it: whoever reads the page elsewhere is not to see it."""
    source[0] = re.sub(r"^<!--(\{.*?)-->$", r"```\1```", source[0], flags=re.DOTALL | re.MULTILINE)


def with_inherited_arguments(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Show those arguments of an operator's bases, too, that its docstring describes; its own signature lacks them."""
    from openmarkets_provider.operators.base import QueryOperator

    if what != "class" or not issubclass(obj, QueryOperator):
        return signature, returned
    shown: dict[str, inspect.Parameter] = {}
    for each in obj.__mro__[: obj.__mro__.index(QueryOperator) + 1]:
        for parameter in inspect.signature(each.__init__).parameters.values():
            if each is obj or f":param {parameter.name}:" in (obj.__doc__ or ""):
                shown.setdefault(parameter.name, parameter)
    del shown["self"]
    return stringify_signature(inspect.Signature(sorted(shown.values(), key=lambda one: one.kind))), returned


def setup(app: Sphinx) -> dict[str, Any]:
    """Extend Sphinx."""
    app.connect("source-read", with_directives)
    app.connect("doctree-read", add_keywords)
    app.connect("autodoc-process-signature", with_inherited_arguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
