#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""2,000 stalled connections: memory grows by 64 MiB at most, and a live client keeps 0.8 of its IOPS."""
import json
import resource
import statistics

import harness
from nbd_raw import OPT_GO, READ, Raw, command_bytes, info_data, is_served, option_bytes

MIB = 1 << 20
COUNT = 2000
ENOUGH = 0.8


def private_memory(daemon):
    """Resident bytes that are the process's own: no files, no shared memory."""
    with open(f"/proc/{daemon.pid}/status", encoding="ascii") as f:
        return int([line for line in f if line.startswith("RssAnon")][0].split()[1]) << 10


def iops(t, d):
    """Of a live client that reads 4 KiB with 16 requests in flight, for a second."""
    done = t.run("fio", "--name=live", "--ioengine=nbd", f"--uri={d.uri('vda')}", "--rw=randread", "--bs=4k",
                 "--iodepth=16", "--size=16m", "--time_based", "--runtime=1", "--output-format=json")
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["read"]["iops"]


def kept(t, alone, beside):
    """The share of its IOPS that a client keeps: the median over pairs taken one after the other, in changing order,
    since the machine has other work, too. Few pairs when they are enough to see it."""
    shares = []
    while len(shares) < 5 or (statistics.median(shares) < ENOUGH and len(shares) < 21):
        i = len(shares)
        if i % 2:
            without, with_crowd = iops(t, alone), iops(t, beside)
        else:
            with_crowd, without = iops(t, beside), iops(t, alone)
        shares.append(with_crowd / without)
    return statistics.median(shares)


def stalled(d, kind):
    c = Raw(d)
    if kind == "handshake":
        c.greet()
        c.send(option_bytes(OPT_GO, info_data("vda"))[:-3])
        return c
    c.go()
    if kind == "replies":  # as much as one send takes of it
        c.socket.setblocking(False)
        c.socket.send(b"".join(command_bytes(READ, (i % 8) * MIB, 2 * MIB, cookie=i) for i in range(64)))
    if kind == "small replies":
        c.socket.setblocking(False)
        c.socket.send(b"".join(command_bytes(READ, 4096 * (i % 64), 4096, cookie=i) for i in range(2000)))
    return c


def check(t, kinds):
    harness.need("fio")
    if harness.FACTOR > 1:
        raise harness.Skip("memory and speed say nothing under a sanitizer")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < COUNT + 200:
        raise harness.Skip(f"the limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    d = t.daemon({"vda": t.disk("a.raw", 16 * MIB, fill=1)})
    assert is_served(d)
    before = private_memory(d)
    crowd = [stalled(d, kinds[i % len(kinds)]) for i in range(COUNT)]
    assert is_served(d)
    other = harness.Case("empty")  # another VM, whose daemon has one client only
    try:
        share = kept(t, other.daemon({"vda": other.disk("a.raw", 16 * MIB, fill=1)}), d)
        other.finish()
    finally:
        other.clean()
    grown = private_memory(d) - before
    print(f"{len(crowd)} x {', '.join(kinds)}: {grown / MIB:.1f} MiB more, {share:.2f} of the IOPS kept", flush=True)
    for c in crowd:
        c.close()
    assert is_served(d)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert grown <= 64 * MIB, f"{grown / MIB:.1f} MiB"
    assert share >= ENOUGH, f"a live client keeps {share:.2f} of its IOPS"


def test_idle(t):
    check(t, ["idle", "handshake"])


def test_replies_never_taken(t):
    check(t, ["replies"])


def test_mixture(t):
    check(t, ["idle", "handshake", "replies", "small replies"])


harness.main()
