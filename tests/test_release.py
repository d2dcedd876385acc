"""What ``make version``, ``make release`` and ``make audit`` do, and refuse, in a copy of the checkout."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from release.__main__ import check_no_paths, leave
from release.audit import check_advisories, layers, read_pins
from release.build import build, check_contents, check_same, members, metadata_of
from release.common import ROOT, Refused
from release.installed import without_links
from release.licences import PAGE, installed_licences, is_allowed, needed, page, shown
from release.state import check_state
from release.version import advance, code_version, read_changelog

TODAY = date(2026, 2, 3)


def git(root: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(["git", *arguments], cwd=root, env=env, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "x")
    return git(root, "rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of what is here, committed, that was given its version."""
    root = tmp_path_factory.mktemp("release") / "checkout"
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        # One that is deleted and not committed yet is listed too.
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git(root, "init", "--quiet")
    if read_changelog(root).unreleased:
        advance(root, str(next_version(root)), TODAY)
    commit(root)
    return root


def next_version(root: Path) -> Version:
    major, minor, patch = code_version(root).release
    return Version(f"{major}.{minor}.{patch + 1}")


@pytest.fixture(scope="module")
def built(released: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(released, tmp_path_factory.mktemp("build"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What a version is written in, small."""
    (tmp_path / "openmarkets_provider").mkdir()
    (tmp_path / "openmarkets_provider" / "__init__.py").write_text('"""A package."""\n\n__version__ = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(LOG)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


LOG = """# Changelog

## Unreleased

- New.

## 0.2.0 (2026-01-02)

- Old.
"""


class TestVersion:
    def test_what_is_unreleased_gets_a_section_and_the_code_the_version(self, project: Path):
        advance(project, "0.3.0", TODAY)
        wanted = LOG.replace("## Unreleased\n", "## Unreleased\n\n## 0.3.0 (2026-02-03)\n")
        assert (project / "CHANGELOG.md").read_text() == wanted
        assert (
            project / "openmarkets_provider" / "__init__.py"
        ).read_text() == '"""A package."""\n\n__version__ = "0.3.0"\n'
        log = read_changelog(project)
        assert (log.unreleased, log.released) == ("", (Version("0.3.0"), Version("0.2.0")))

    @pytest.mark.parametrize("version", ["0.2.1", "0.10.0", "1.0.0", "0.3.0rc1", "0.3.0.post1"])
    def test_a_higher_version_is_taken(self, project: Path, version: str):
        advance(project, version, TODAY)
        assert code_version(project) == Version(version)

    def test_the_first_release_may_have_the_version_that_the_code_has(self, project: Path):
        (project / "CHANGELOG.md").write_text(LOG.partition("## 0.2.0")[0])
        advance(project, "0.2.0", TODAY)
        assert read_changelog(project).released == (Version("0.2.0"),)

    @pytest.mark.parametrize(
        ("version", "message"),
        [
            ("", "VERSION is empty: make version VERSION=0.2.0"),
            ("next", "'next' is not a version as PEP 440 has them"),
            ("v0.3.0", "must be written with three numbers"),
            ("0.3", "must be written with three numbers"),
            ("0.03.0", "must be written with three numbers"),
            ("0.3.0-rc1", "must be written with three numbers"),
            ("0.3.0+here", "an epoch, a local part or .dev"),
            ("1!0.3.0", "an epoch, a local part or .dev"),
            ("0.3.0.dev1", "an epoch, a local part or .dev"),
            ("0.2.0", "0.2.0 is not higher than 0.2.0, which CHANGELOG.md has"),
            ("0.2.0rc1", "0.2.0rc1 is not higher than 0.2.0"),
            ("0.1.9", "0.1.9 is not higher than 0.2.0"),
        ],
    )
    def test_nonsense_is_refused_and_nothing_is_changed(self, project: Path, version: str, message: str):
        with pytest.raises(Refused, match=re.escape(message)):
            advance(project, version, TODAY)
        assert git(project, "status", "--porcelain") == ""

    def test_a_version_below_the_codes_is_refused(self, project: Path):
        (project / "CHANGELOG.md").write_text(LOG.partition("## 0.2.0")[0])
        with pytest.raises(Refused, match=r"0\.1\.0 is lower than 0\.2\.0, which the code has"):
            advance(project, "0.1.0", TODAY)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("- New.\n\n", ""), "nothing stands under '## Unreleased'"),
            (("## Unreleased\n", "## 0.3.0 (unreleased)\n"), "its first section must be '## Unreleased'"),
            (("(2026-01-02)", "(soon)"), "'## 0.2.0 (soon)' must be written"),
            (("## 0.2.0", "## 0.1.0 (2025-01-01)\n\n## 0.2.0"), "in order, the highest first"),
        ],
    )
    def test_a_changelog_that_says_nothing_or_is_malformed_is_refused(
        self, project: Path, change: tuple[str, str], message: str
    ):
        (project / "CHANGELOG.md").write_text(LOG.replace(*change))
        with pytest.raises(Refused, match=re.escape(message)):
            advance(project, "0.3.0", TODAY)

    def test_the_changelog_of_this_checkout_is_well_formed(self):
        log = read_changelog(ROOT)
        assert max(log.released, default=Version("0")) <= code_version(ROOT)


class TestState:
    @pytest.fixture(autouse=True)
    def ready(self, project: Path) -> str:
        advance(project, "0.3.0", TODAY)
        return commit(project)

    def test_a_commit_whose_version_is_in_the_changelog_may_be_released(self, project: Path):
        assert check_state(project) == Version("0.3.0")

    @pytest.mark.parametrize("name", ["new.py", "CHANGELOG.md", "openmarkets_provider/deep/new.py"])
    def test_what_is_not_committed_is_refused(self, project: Path, name: str):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("x")
        with pytest.raises(Refused, match=f"1 files are not as they were committed .{re.escape(name)}"):
            check_state(project)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("0.3.0 (2026-02-03)", "0.3.1 (2026-02-03)"), "0.3.0, which the code has, is not its last version"),
            (("## Unreleased\n", "## Unreleased\n\n- More.\n"), "something stands under '## Unreleased'"),
        ],
    )
    def test_a_changelog_that_is_not_of_this_version_is_refused(
        self, project: Path, change: tuple[str, str], message: str
    ):
        path = project / "CHANGELOG.md"
        path.write_text(path.read_text().replace(*change))
        commit(project)
        with pytest.raises(Refused, match=re.escape(message)):
            check_state(project)

    @pytest.mark.parametrize("kind", [[], ["--annotate", "--message", "x"]], ids=["plain", "annotated"])
    def test_a_tag_of_another_commit_is_refused_and_one_of_this_is_not(
        self, project: Path, ready: str, kind: list[str]
    ):
        git(project, "tag", *kind, "v0.3.0")
        assert check_state(project) == Version("0.3.0")
        later = commit(project)
        with pytest.raises(Refused, match=f"The tag v0.3.0 is of another commit, {ready[:12]}; this is {later[:12]}"):
            check_state(project)


class TestBuild:
    def test_two_builds_are_the_same_and_hold_what_they_should(self, released: Path, built: tuple[Path, Path]):
        # build() compares both, and the wheel of the tree with that of the sdist.
        version = check_state(released)
        check_contents(released, *built, version)
        said = metadata_of(built[0])
        assert said["Requires-Python"] == ">=3.11"
        assert set(said.get_all("Provides-Extra", [])) == {
            "sandbox",
            "parquet",
            "pandas",
            "polars",
            "sql",
            "s3",
            "zstd",
            "redis",
        }

    def test_a_byte_that_differs_is_told_by_the_name_of_its_file(self, built: tuple[Path, Path], tmp_path: Path):
        wheel, _ = built
        for name, extra in (("one", b""), ("other", b"#")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.tar.gz").write_bytes(b"")
            change(wheel, tmp_path / name / wheel.name, {"openmarkets_provider/queries.py": extra})
        with pytest.raises(Refused, match=r"differ in: openmarkets_provider/queries\.py\."):
            check_same(tmp_path / "one", tmp_path / "other")

    def test_builds_of_other_names_differ(self, built: tuple[Path, Path], tmp_path: Path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(Refused, match="Two builds made different files"):
            check_same(built[0].parent, tmp_path / "empty")

    @pytest.mark.parametrize(
        ("added", "dropped", "message"),
        [
            (
                {"openmarkets_provider/tests/test_x.py": b""},
                "",
                r"the wheel holds tests: openmarkets_provider/tests/test_x\.py",
            ),
            ({"openmarkets_provider/.env": b""}, "", r"not of the package: openmarkets_provider/\.env"),
            ({}, "openmarkets_provider/py.typed", r"the wheel lacks: openmarkets_provider/py\.typed"),
            ({}, "licenses/LICENSE", "the wheel lacks: .*licenses/LICENSE"),
        ],
    )
    def test_a_wheel_with_more_or_less_than_the_package_is_refused(
        self,
        released: Path,
        built: tuple[Path, Path],
        tmp_path: Path,
        added: dict[str, bytes],
        dropped: str,
        message: str,
    ):
        wheel = tmp_path / built[0].name
        change(built[0], wheel, added, dropped)
        with pytest.raises(Refused, match=message):
            check_contents(released, wheel, built[1], check_state(released))


def change(wheel: Path, target: Path, added: dict[str, bytes], dropped: str = "\0") -> None:
    """Write a wheel with bytes added to its members, or without one of them; its record is kept right."""
    held = members(wheel.read_bytes())
    held = {name: data for name, data in held.items() if not (dropped and name.endswith(dropped))}
    held |= {name: held.get(name, b"") + data for name, data in added.items()}
    (record,) = (name for name in held if name.endswith("/RECORD"))
    held[record] = "".join(f"{name},,\n" for name in held).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)


class TestWhatIsLeft:
    def test_the_checksums_are_those_of_all_other_files_and_old_ones_are_gone(self, tmp_path: Path):
        (tmp_path / "x.whl").write_bytes(b"wheel")
        (tmp_path / "dist").mkdir()
        (tmp_path / "dist" / "old.whl").write_bytes(b"")
        leave(tmp_path / "dist", [tmp_path / "x.whl"], {"bom.json": "{}"})
        sums = (tmp_path / "dist" / "SHA256SUMS").read_text()
        wanted = {"bom.json": b"{}", "x.whl": b"wheel"}
        assert sums == "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in wanted.items())
        assert {path.name for path in (tmp_path / "dist").iterdir()} == {"SHA256SUMS", *wanted}

    def test_a_bill_of_materials_has_no_links_and_no_path_of_the_machine(self):
        link = {"externalReferences": [{"url": "file:///tmp/x.whl"}]}
        bom = {"metadata": {"component": {"name": "a"} | link}, "components": [{"name": "b"} | link]}
        kept = without_links(bom)
        assert kept == {"metadata": {"component": {"name": "a"}}, "components": [{"name": "b"}]}
        check_no_paths({"bom": json.dumps(kept)}, ("/tmp/scratch",))
        for text in (json.dumps(bom), "/tmp/scratch/venv"):
            with pytest.raises(Refused, match="bom holds"):
                check_no_paths({"bom": text}, ("/tmp/scratch",))


class TestLicences:
    def test_the_page_is_what_the_installed_packages_say(self):
        assert page(ROOT / "pyproject.toml", installed_licences()) == PAGE.read_text(encoding="utf-8"), "run make audit"

    @pytest.mark.parametrize("stated", ["GPL-3.0", "MIT AND GPL-3.0", "UNKNOWN", "", "MIT; Artistic License"])
    def test_a_licence_that_is_not_on_the_list_is_refused_with_the_names_of_all_such_packages(self, stated: str):
        licences = dict.fromkeys(needed(ROOT / "pyproject.toml"), "MIT") | {"redis": stated, "httpx": stated}
        with pytest.raises(Refused, match=r"httpx .*redis "):
            page(ROOT / "pyproject.toml", licences)

    def test_of_a_choice_one_licence_is_enough(self):
        assert is_allowed("GPL-2.0 OR MIT")
        assert is_allowed("MIT License; Apache Software License")
        assert shown("Apache-2.0 OR BSD-3-Clause") == "Apache-2.0 or BSD-3-Clause"


class Advisories(ThreadingHTTPServer):
    """Answers as OSV does: with the advisory that it has about one version, or with nothing."""

    status, asked = 200, ()


class _Handler(BaseHTTPRequestHandler):
    server: Advisories

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = query["package"]["name"], query["version"]
        self.server.asked = (*self.server.asked, package)
        fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.7"}]}
        affected = [{"package": query["package"], "ranges": [fixed]}]
        body = json.dumps(
            {"vulns": [{"id": "X-1", "affected": affected}]} if package == ("idna", "3.6") else {}
        ).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    with Advisories(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestAudit:
    PINS = (("idna", "3.7"), ("anyio", "4.0.0"), ("idna", "3.8"))

    @pytest.fixture
    def audit(self, advisories: Advisories) -> Callable[..., None]:
        return lambda pins: check_advisories(pins, f"http://127.0.0.1:{advisories.server_port}/")

    def test_every_pin_is_asked_for_also_where_a_package_has_two(
        self, advisories: Advisories, audit: Callable[..., None]
    ):
        audit(self.PINS)
        assert sorted(advisories.asked) == sorted(self.PINS)

    def test_an_advisory_is_told_with_the_version_that_mends_it(self, audit: Callable[..., None]):
        with pytest.raises(Refused, match=r"idna 3\.6: X-1, mended in 3\.7"):
            audit([("idna", "3.6"), ("anyio", "4.0.0")])

    def test_a_service_that_fails_is_no_clean_bill(self, advisories: Advisories, audit: Callable[..., None]):
        advisories.status = 500
        with pytest.raises(Refused, match=r"could not ask .* about 2 packages, so nothing is known of them"):
            audit(self.PINS)

    def test_a_service_that_is_not_there_is_no_clean_bill(self, advisories: Advisories, audit: Callable[..., None]):
        advisories.server_close()
        with pytest.raises(Refused, match="Can this machine reach it"):
            audit(self.PINS)

    def test_all_lines_of_the_constraints_are_pins(self):
        pins = read_pins(ROOT / "constraints.txt")
        assert len(pins) == len(set(pins)) == len((ROOT / "constraints.txt").read_text().split("\n")) - 1
        parted = layers(pins)
        assert sorted(pin for layer in parted for pin in layer) == sorted(pins)
        assert all(len({name for name, _ in layer}) == len(layer) for layer in parted)
