#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every source file names its licence in its first two lines, has at most 800 lines of at most 125 columns, no tabs and
no blanks at line ends; every header has its guard; no function is longer than 70 lines."""
import re
import sys

import tree

LGPL = ("include/", "src/lib/", "src/base/")
LONGEST_FUNCTION, LONGEST_FILE, WIDEST_LINE = 70, 800, 125


def functions(lines):
    """(name, first line, length) of the functions of a C file as clang-format leaves it."""
    start = None
    for number, line in enumerate(lines, 1):
        if line == "{" and start is None:
            start = number
        elif line == "}" and start is not None:
            yield lines[start - 2].strip(), start, number - start - 1
            start = None


def look(path, name, wrong):
    lines = path.read_text(encoding="utf-8").splitlines()
    licence = "LGPL-2.1-or-later" if name.startswith(LGPL) and name.endswith((".c", ".h")) else "GPL-2.0-or-later"
    head = "\n".join(lines[:2])
    found = re.search(r"SPDX-License-Identifier: (\S+)", head)
    allowed = (licence,) if name.endswith((".c", ".h")) else ("GPL-2.0-or-later", "LGPL-2.1-or-later")
    if not found or found[1] not in allowed:
        wrong.append(f"{name}:1: the licence of this file is SPDX-License-Identifier: {licence}")
    if len(lines) > LONGEST_FILE:
        wrong.append(f"{name}: {len(lines)} lines; past {LONGEST_FILE} it is two nouns")
    for number, line in enumerate(lines, 1):
        if len(line) > WIDEST_LINE:
            wrong.append(f"{name}:{number}: {len(line)} columns, more than {WIDEST_LINE}")
        if line != line.rstrip() or "\t" in line:
            wrong.append(f"{name}:{number}: a tab, or blanks at the end of the line")
    if name.endswith(".h") and not re.search(r"^#ifndef (\w+)\n#define \1$", "\n".join(lines), re.M):
        wrong.append(f"{name}: no include guard")
    if name.endswith(".c"):
        for header, number, length in functions(lines):
            if length > LONGEST_FUNCTION:
                wrong.append(f"{name}:{number}: {header}: {length} lines, more than {LONGEST_FUNCTION}")


def main():
    wrong = []
    for path in tree.files("*.c", "*.h", "*.py", "*.sh", "meson.build", "check", "quickstart", "scripts/*", ".ci/run"):
        look(path, str(path.relative_to(sys.argv[1])), wrong)
    tree.finish(wrong)


main()
