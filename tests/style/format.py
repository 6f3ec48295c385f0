#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""All C code is as clang-format 14 leaves it; `clang-format-14 -i FILE` mends what this names."""
import shutil
import subprocess
import sys

import tree

program = shutil.which("clang-format-14")
if not program:
    print("clang-format-14 is not installed")
    sys.exit(77)
names = tree.files("*.c", "*.h")
done = subprocess.run([program, "--dry-run", "-Werror", *names], capture_output=True, text=True, check=False)
tree.finish([line for line in done.stderr.splitlines() if "error:" in line])
