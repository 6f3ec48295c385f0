#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots come and go under load: guests' data stay right, and every snapshot shows one instant of all disks."""
import time

import harness

MIB = 1 << 20
SECONDS = 8 * harness.FACTOR
STAMP = "tests/tools/stamp"


def test_fio_verifies_while_snapshots_come_and_go(t):
    harness.need("fio", "nbdcopy")
    d = t.daemon({"vda": t.disk("a.raw", 64 * MIB)})
    fio = t.spawn("fio", "--name=v", "--ioengine=nbd", f"--uri={d.uri('vda')}", "--rw=randrw", "--bs=4k", "--size=64m",
                  "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=512", "--loops=1000",
                  f"--runtime={SECONDS:g}", "--time_based", f"--output={t.path('fio.log')}")
    made, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert fio.poll() is None or time.monotonic() > end - 2, t.path("fio.log").read_text()
        d.fleece("snapshot", "create", f"s{made}")
        if made % 4 == 0:
            t.run("nbdcopy", d.uri(f"vda@s{made}"), "null:")
        if made >= 2:
            d.fleece("snapshot", "delete", f"s{made - 2}")
        made += 1
    fio.wait(30 * harness.FACTOR)
    assert fio.returncode == 0, t.path("fio.log").read_text()[-3000:]
    disk = d.status()["disks"][0]
    print(f"{made} snapshots, {disk['writes']} writes, {disk['blocks-preserved']} blocks preserved")
    assert made >= 5 and disk["blocks-preserved"] > 0 and disk["errors"] == 0
    d.stop()


def instants(t, kind, *options):
    """Writers on two disks; snapshot after snapshot is judged through its exports, two of them at once."""
    stamp = t.program(STAMP)
    d = t.daemon({"vda": t.disk("a.raw", 32 * MIB), "vdb": t.disk("b.raw", 32 * MIB)})
    writer = t.spawn(stamp, kind, d.uri("vda"), d.uri("vdb"), "--log", t.path("log"), "--region", "1M:16M", *options,
                     stdout=open(t.path("said"), "wb"), stderr=-2)
    harness.wait_for("the writers write", lambda: d.status()["disks"][1]["writes"] > 100)

    def judge(name, times):
        t.run(stamp, "check", d.uri(f"vda@{name}"), d.uri(f"vdb@{name}"), "--log", t.path("log"),
              "--before", times[0], "--after", times[1], timeout=120)
        d.fleece("snapshot", "delete", name)

    now = lambda: t.run(stamp, "now").stdout.strip()
    waiting, made, end = [], 0, time.monotonic() + SECONDS
    while time.monotonic() < end or made < 5:
        assert writer.poll() is None, t.path("said").read_text()
        before = now()
        d.fleece("snapshot", "create", f"s{made}")
        waiting.append((f"s{made}", (before, now())))
        made += 1
        time.sleep(0.1)
        if len(waiting) == 3:
            judge(*waiting.pop(0))
    for one in waiting:
        judge(*one)
    writer.terminate()
    assert writer.wait(20) == 0, t.path("said").read_text()
    print(f"{made} snapshots; {t.path('said').read_text().strip()}")
    assert all(disk["blocks-preserved"] > 0 and disk["errors"] == 0 for disk in d.status()["disks"])
    d.stop()
    t.run(stamp, "check", t.path("a.raw"), t.path("b.raw"), "--log", t.path("log"), "--before", now())


def test_snapshots_show_one_instant(t):
    instants(t, "write", "--writers", "4", "--flush-every", "50")


def test_dependent_writes_keep_their_order(t):
    instants(t, "dependent", "--writers", "3")


harness.main()
