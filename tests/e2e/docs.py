#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that README.md and docs/testing.md show do what they say. (README.md's larger example is
tests/guest/backup.py's.)"""
import os
import pathlib

import harness

MARK = "<!-- tests/e2e/docs.py runs this -->\n\n```sh\n"


def block(page, count=1):
    """All commands of a page, one behind the other."""
    parts = (harness.ROOT / page).read_text().split(MARK)[1:]
    assert len(parts) == count, f"{page}: {len(parts)} blocks of commands, not {count}"
    return "\n".join(part.split("```")[0].strip() for part in parts)


def test_readme_commands(t):
    """By the VM's name, so with the default place of the control socket."""
    harness.need("nbdcopy")
    t.borrow_vm("web1")
    t.path("build").symlink_to(harness.BUILD)
    disk = t.disk("web1.raw", 4 << 20, fill=1)
    folder = t.path("run/fleece/web1") if os.getuid() else pathlib.Path("/run/fleece/web1")
    d = harness.Daemon(t, [t.program("fleeced"), "--name", "web1", "--disk", f"vda={disk}", "--nbd",
                           f"unix:{t.path('web1.nbd')}"], folder / "control.sock", f"unix:{t.path('web1.nbd')}",
                       t.environment, "fleeced.log")
    t.daemons.append(d)
    d.wait_ready()
    said = t.run("sh", "-ec", block("README.md", 2), cwd=t.dir).stdout
    assert "VM web1" in said and "no snapshots" in said, said
    assert "intact" in said and "stays: last" in said and "committed" in said, said
    d.stop()
    assert t.path("vda.img").read_bytes() == t.path("pushed.img").read_bytes() == disk.read_bytes()


def test_testing_page(t):
    t.path("build").symlink_to(harness.BUILD)
    t.path("tests").symlink_to(harness.ROOT / "tests")
    environment = dict(t.environment, TMPDIR=str(t.dir), FLEECE_BUILD=str(harness.BUILD))
    for line in block("docs/testing.md").splitlines():
        command = line.partition("#")[0].strip()
        if command.startswith("meson"):  # a run within the run would not do: are there such tests?
            command = command.replace(" --verbose", "").replace(" serve", "") + " --list"
        said = t.run("sh", "-c", command, cwd=t.dir, env=environment).stdout
        assert "serve" in said or "PASS test_a_whole_disk_is_read" in said, f"{line}:\n{said}"


harness.main()
