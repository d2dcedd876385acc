"""Build, check, install, try and describe a release: ``make release``. What it leaves is in ``dist/``."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from release.build import build, check_contents
from release.common import NAME, ROOT, Refused, exit_status
from release.installed import Installed
from release.state import check_state, git, tag_of

DIST = ROOT / "dist"


def main() -> None:
    """Make the release; ``dist/`` is changed when all is well."""
    version = check_state(ROOT)
    print(f"{NAME} {version}, commit {git(ROOT, 'rev-parse', 'HEAD').strip()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="openmarkets-release-") as name:
        scratch = Path(name)
        wheel, sdist = build(ROOT, scratch / "build")
        check_contents(ROOT, wheel, sdist, version)
        print(
            "built twice, from the tree and from the sdist: the same bytes; metadata and contents are right", flush=True
        )
        (scratch / "clean").mkdir()
        clean = Installed(scratch / "clean", wheel)
        bom = json.dumps(clean.bill_of_materials(version, git(ROOT, "log", "-1", "--format=%ct").strip()), indent=1)
        licences = clean.licences()
        clean.check_airflow_knows_it(version)
        # The demo draws a chart, and two modules are for tests.
        clean.install("--group", f"{ROOT / 'pyproject.toml'}:demo", "pytest")
        print(f"installed: airflow providers list, get, hooks; {clean.check_imports()} modules imported", flush=True)
        print(f"the demo, with the wheel:\n{what_it_came_to(clean.run_demo(sdist))}", flush=True)
        described = {f"{NAME}-{version}.cdx.json": bom, f"{NAME}-{version}.licences.txt": licences}
        check_no_paths(described, (name, str(ROOT)))
        leave(DIST, [wheel, sdist], described)
    print((DIST / "SHA256SUMS").read_text(encoding="utf-8"))
    print(
        f"All is in dist/. Next: git tag --sign {tag_of(version)}, and upload dist/*.whl and dist/*.tar.gz with twine."
    )


def what_it_came_to(told: str) -> str:
    """Return what the demo tells of its runs and of what they landed, without what it shows."""
    return "\n".join(line for line in told.splitlines() if line.startswith(("The run of", "Read back", "and ")))


def check_no_paths(described: dict[str, str], paths: tuple[str, ...]) -> None:
    """Check that what is told of the release does not tell of the machine.

    :raises Refused: it does.
    """
    for name, text in described.items():
        for path in (*paths, "file:"):
            if path in text:
                raise Refused(f"{name} holds {path}")


def leave(target: Path, built: list[Path], described: dict[str, str]) -> None:
    """Put everything into a folder, with checksums, instead of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in built:
        shutil.copyfile(path, target / path.name)
    for name, text in described.items():
        (target / name).write_text(text, encoding="utf-8")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(target.iterdir())]
    (target / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
