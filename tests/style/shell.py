#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""shellcheck has nothing to say about the shell scripts."""
import shutil
import subprocess
import sys

import tree

if not shutil.which("shellcheck"):
    print("shellcheck is not installed")
    sys.exit(77)
names = [p for p in tree.files("*") if p.suffix not in (".c", ".h") and p.stat().st_size < 1 << 20
         and p.read_bytes().startswith((b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash"))]
done = subprocess.run(["shellcheck", *names], capture_output=True, text=True, check=False)
tree.finish(done.stdout.splitlines())
