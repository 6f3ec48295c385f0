# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of the project, as git knows them or, outside of git, as they lie there."""
import pathlib
import subprocess
import sys


def files(*patterns):
    root = pathlib.Path(sys.argv[1])
    listed = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True,
                            check=False)
    if listed.returncode == 0:
        paths = [root / name for name in listed.stdout.splitlines()]
    else:
        paths = [p for p in root.rglob("*") if not p.relative_to(root).parts[0].startswith(("build", ".git"))]
    return sorted(p for p in paths if p.is_file() and any(p.relative_to(root).match(x) for x in patterns))


def finish(wrong):
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)
