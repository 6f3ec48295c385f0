#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon starts, serves its disks to stock clients, and ends without a trace."""
import harness


def test_live_disks_are_listed(t):
    harness.need("nbdinfo")
    d = t.daemon({"vda": t.disk("a.raw", 64 << 20), "vdb": t.disk("b.raw", 1 << 20)})
    listed = t.run("nbdinfo", "--list", d.uri("")).stdout
    assert 'export="vda"' in listed and 'export="vdb"' in listed, listed
    assert "67108864" in listed and "1048576" in listed, listed
    d.stop()


def test_a_whole_disk_is_read(t):
    harness.need("nbdcopy")
    disk = t.disk("a.raw", (8 << 20) + 512, fill=1)
    d = t.daemon({"vda": disk})
    t.run("nbdcopy", d.uri("vda"), t.path("copy.raw"))
    d.stop()
    assert t.path("copy.raw").read_bytes() == disk.read_bytes()


harness.main()
