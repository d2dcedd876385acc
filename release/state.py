"""What may be released: a commit, whole, with its version in CHANGELOG.md, that no other commit was tagged as."""

from __future__ import annotations

from pathlib import Path

from packaging.version import Version

from release.common import Refused, run
from release.version import code_version, read_changelog

SHOWN = 5


def check_state(root: Path) -> Version:
    """Return the version that a checkout may be released as.

    :raises Refused: files that are not committed, no section in CHANGELOG.md, or a tag of another commit.
    """
    if changed := git(root, "status", "--porcelain", "--untracked-files=all").splitlines():
        named = ", ".join(line[3:] for line in changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")
        raise Refused(f"{len(changed)} files are not as they were committed ({named}). Commit them or take them away.")
    version, log = code_version(root), read_changelog(root)
    if version not in log.released[:1]:
        raise Refused(
            f"CHANGELOG.md: {version}, which the code has, is not its last version. "
            f"Make it so: make version VERSION={version}"
        )
    if log.unreleased:
        raise Refused("CHANGELOG.md: something stands under '## Unreleased'. Move on: make version VERSION=...")
    head, tag = git(root, "rev-parse", "HEAD").strip(), tag_of(version)
    if git(root, "tag", "--list", tag) and (tagged := git(root, "rev-parse", f"{tag}^{{commit}}").strip()) != head:
        raise Refused(f"The tag {tag} is of another commit, {tagged[:12]}; this is {head[:12]}.")
    return version


def tag_of(version: Version) -> str:
    """Return how a release is tagged."""
    return f"v{version}"


def git(root: Path, *arguments: str) -> str:
    """Ask git something about a checkout."""
    return run("git", *arguments, cwd=root)
