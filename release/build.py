"""Wheel and sdist from the last commit, so that whoever builds them again gets the same bytes."""

from __future__ import annotations

import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from io import BytesIO
from pathlib import Path, PurePosixPath

from packaging.version import Version

from release.common import NAME, PACKAGE, Argument, Refused, plain_environment, run, tool
from release.state import git

IN_METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
IN_SDIST = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "pyproject.toml",
}


def build(root: Path, scratch: Path) -> tuple[Path, Path]:
    """Build the last commit twice, under different circumstances, and return the wheel and the sdist.

    The first wheel is made from the tree, the second from the sdist.

    :param scratch: an empty folder.
    :raises Refused: the two builds differ, in a file or in a byte; the text names what differs.
    """
    first, second = scratch / "one", scratch / "another-place" / "and-deeper"
    for folder in (first, second):
        export(root, folder / "tree")
    for path in second.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    epoch = git(root, "log", "-1", "--format=%ct").strip()
    both_from_tree = ["--wheel", "--sdist"]
    for folder, options, zone, umask in (
        (first, both_from_tree, "UTC", 0o022),
        (second, [], "Australia/Sydney", 0o077),
    ):
        env = plain_environment(SOURCE_DATE_EPOCH=epoch, TZ=zone, PYTHONHASHSEED=str(umask), LC_ALL="C.UTF-8")
        command: list[Argument] = [
            tool("python"),
            "-m",
            "build",
            "--no-isolation",
            *options,
            "--outdir",
            folder / "dist",
        ]
        run(*command, cwd=folder / "tree", env=env, umask=umask)
    check_same(first / "dist", second / "dist")
    (wheel,), (sdist,) = (first / "dist").glob("*.whl"), (first / "dist").glob("*.tar.gz")
    return wheel, sdist


def export(root: Path, target: Path) -> None:
    """Unpack the files of the last commit."""
    archive = target.with_suffix(".tar")
    target.mkdir(parents=True)
    git(root, "archive", "--format=tar", "--output", str(archive), "HEAD")
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")


def check_same(one: Path, other: Path) -> None:
    """Compare the built files of two folders, byte by byte.

    :raises Refused: they differ; the text names the members that do.
    """
    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    if names[0] != names[1] or len(names[0]) != 2:
        raise Refused(f"Two builds made different files: {sorted(names[0])} and {sorted(names[1])}.")
    for name in sorted(names[0]):
        built = [(folder / name).read_bytes() for folder in (one, other)]
        if built[0] != built[1]:
            held = [members(data) for data in built]
            differ = [member for member in held[0] | held[1] if held[0].get(member) != held[1].get(member)]
            what = ", ".join(sorted(differ)) or "the archive itself: times, modes or the order of its members"
            raise Refused(f"Two builds of {name} differ in: {what}.")


def members(built: bytes) -> dict[str, bytes]:
    """Return the files in a wheel or an sdist, by name."""
    if zipfile.is_zipfile(BytesIO(built)):
        with zipfile.ZipFile(BytesIO(built)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(fileobj=BytesIO(built)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


def metadata_of(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    (text,) = (data for name, data in members(wheel.read_bytes()).items() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(text.decode())


def check_contents(root: Path, wheel: Path, sdist: Path, version: Version) -> None:
    """Check the metadata of both, and that the wheel holds the package as committed and nothing else.

    :raises Refused: something is missing or too much, or twine or check-wheel-contents says so.
    """
    held = members(wheel.read_bytes())
    metadata = f"{wheel.name.split('-')[0]}-{version}.dist-info"
    committed = set(git(root, "ls-tree", "-r", "--name-only", "HEAD", PACKAGE).splitlines())
    wanted = committed | {f"{metadata}/{name}" for name in IN_METADATA}
    _refuse("the wheel holds tests", {name for name in held if _is_test(PurePosixPath(name))})
    _refuse("the wheel lacks", wanted - held.keys())
    _refuse("the wheel holds, which is not of the package", held.keys() - wanted)
    _refuse("the wheel lacks", {f"{PACKAGE}/py.typed"} - held.keys())
    said = metadata_of(wheel)
    if (said["Name"], said["Version"]) != (NAME, str(version)):
        raise Refused(f"The wheel's metadata say {said['Name']} {said['Version']}, not {NAME} {version}.")
    in_sdist = members(sdist.read_bytes())
    top = sdist.name.removesuffix(".tar.gz")
    _refuse("the sdist lacks", {f"{top}/{name}" for name in IN_SDIST | committed} - in_sdist.keys())
    for file, holds in ((wheel, held), (sdist, in_sdist)):
        path = str(root).encode()
        _refuse(f"{file.name} names the checkout's path", {name for name, data in holds.items() if path in data})
    run(tool("twine"), "check", "--strict", wheel, sdist, cwd=wheel.parent)
    run(tool("check-wheel-contents"), "--toplevel", PACKAGE, wheel, cwd=wheel.parent)


def _is_test(path: PurePosixPath) -> bool:
    return "tests" in path.parts or path.name.startswith("test_") or path.name == "conftest.py"


def _refuse(what: str, names: set[str]) -> None:
    if names:
        raise Refused(f"{what}: {', '.join(sorted(names))}.")
