#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every block of shell commands in README.md and docs/ says which test runs it, in the line above; that test is there
and knows the page. Links between the pages point at files that exist."""
import pathlib
import re
import sys

import tree

root = pathlib.Path(sys.argv[1])
wrong = []
for path in tree.files("README.md", "docs/*.md", "bench/*.md"):
    name = str(path.relative_to(root))
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        if line == "```sh" and not name.startswith("bench/"):
            above = " ".join(lines[max(0, i - 2):i])
            test = re.search(r"<!-- (\S+) runs this -->", above)
            if not test:
                wrong.append(f"{name}:{i + 1}: no test runs these commands (<!-- tests/… runs this -->)")
            elif not (root / test[1]).is_file() or name not in (root / test[1]).read_text():
                wrong.append(f"{name}:{i + 1}: {test[1]} is not there, or does not read {name}")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", line):
            if "://" not in target and not (path.parent / target).exists():
                wrong.append(f"{name}:{i + 1}: a link to {target}, which is not there")
tree.finish(wrong)
