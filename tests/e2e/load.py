#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""fio verifies what it has written to a live disk, while snapshots come, are read and go."""
import time

import harness

MIB = 1 << 20
SECONDS = 8 * min(harness.FACTOR, 2)


def test_fio_verifies_while_snapshots_come_and_go(t):
    harness.need("fio", "nbdcopy")
    d = t.daemon({"vda": t.disk("a.raw", 64 * MIB)})
    fio = t.spawn("fio", "--name=v", "--ioengine=nbd", f"--uri={d.uri('vda')}", "--rw=randrw", "--bs=4k", "--size=64m",
                  "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=512", "--loops=1000",
                  f"--runtime={SECONDS:g}", "--time_based", f"--output={t.path('fio.log')}", cwd=t.dir)
    harness.wait_for("fio writes", lambda: d.status()["disks"][0]["writes"] > 100 or fio.poll() is not None)
    made, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end or made < 5:
        assert fio.poll() in (None, 0), t.path("fio.log").read_text()
        d.fleece("snapshot", "create", f"s{made}")
        if made % 4 == 0:
            t.run("nbdcopy", d.uri(f"vda@s{made}"), "null:")
        if made >= 2:
            d.fleece("snapshot", "delete", f"s{made - 2}")
        made += 1
    fio.wait(harness.SOON)
    assert fio.returncode == 0, t.path("fio.log").read_text()[-3000:]
    disk = d.status()["disks"][0]
    print(f"{made} snapshots, {disk['writes']} writes, {disk['blocks-preserved']} blocks preserved")
    assert made >= 5 and disk["blocks-preserved"] > 0 and disk["errors"] == 0
    d.stop()


harness.main()
