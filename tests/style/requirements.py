#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/REQUIREMENTS.md holds every row once, and each names a test that exists or says "not yet"."""
import pathlib
import re
import sys

import tree

ROWS = {"P": 21, "N": 35, "L": 33, "V": 20, "X": 12}
RULES = {"C": 25}  # of these, some rows only


def main():
    root = pathlib.Path(sys.argv[1])
    wrong, seen = [], {}
    for number, line in enumerate((root / "docs/REQUIREMENTS.md").read_text().splitlines(), 1):
        row = re.match(r"\| ([PNLVXC])(\d+) \|", line)
        if not row:
            continue
        name, cells = row[1] + row[2], [cell.strip() for cell in line.strip("|").split("|")]
        if name in seen:
            wrong.append(f"docs/REQUIREMENTS.md:{number}: {name} is there twice, first in line {seen[name]}")
        seen[name] = number
        proof = cells[-1] if len(cells) == 3 else ""
        tests = re.findall(r"`((?:tests|bench)/[^`:]+)(?::(\w+))?`", proof)
        if not tests and not proof.startswith("not yet"):
            wrong.append(f"docs/REQUIREMENTS.md:{number}: {name} names no test and does not say \"not yet\"")
        for path, function in tests:
            if not (root / path).is_file():
                wrong.append(f"docs/REQUIREMENTS.md:{number}: {name} names {path}, which is not there")
            elif function and not re.search(rf"\b{function}\b", (root / path).read_text()):
                wrong.append(f"docs/REQUIREMENTS.md:{number}: {name} names {function}, which is not in {path}")
    for letter, count in ROWS.items():
        wrong += [f"docs/REQUIREMENTS.md: no row {letter}{i}" for i in range(1, count + 1) if f"{letter}{i}" not in seen]
    wrong += [f"docs/REQUIREMENTS.md: {name} is no row" for name in seen
              if int(name[1:]) > {**ROWS, **RULES}[name[0]]]
    tree.finish(wrong)


main()
