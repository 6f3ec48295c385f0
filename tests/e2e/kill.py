#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of a client and of the daemon under load."""
import time

import harness

MIB = 1 << 20
STAMP = "tests/tools/stamp"


def write(t, d, log, *options, region="0:8M"):
    return t.spawn(t.program(STAMP), "write", d.uri("vda"), d.uri("vdb"), "--log", t.path(log), "--region", region,
                   *options, stdout=open(t.path(f"{log}.said"), "wb"), stderr=-2)


def connections(d):
    return sum(export["connections"] for export in d.status()["exports"])


def check(t, *arguments):
    t.run(t.program(STAMP), "check", *arguments)


def disks(t):
    return {"vda": t.disk("a.raw", 32 * MIB), "vdb": t.disk("b.raw", 32 * MIB)}


def test_clients_die(t):
    """Clients that are killed with writes in flight disturb no other one, and leave no connection behind."""
    d = t.daemon(disks(t))
    steady = write(t, d, "steady", "--writers", "2", region="16M:8M")
    harness.wait_for("the steady writer writes", lambda: d.status()["disks"][1]["writes"] > 50)
    base = connections(d)
    for round_ in range(5):
        victim = write(t, d, f"victim{round_}", "--writers", "4", "--queue", "8")
        harness.wait_for("the victim is connected", lambda: connections(d) == base + 8)
        time.sleep(0.2)
        if round_ % 2:
            d.fleece("snapshot", "create", f"s{round_}")
        victim.kill()
        victim.wait()
        harness.wait_for("its connections are gone", lambda: connections(d) == base)
        if round_ % 2:
            d.fleece("snapshot", "delete", f"s{round_}")
        # All that was acknowledged to the dead is there: nothing older came on top of it later (C14).
        check(t, d.uri("vda"), d.uri("vdb"), "--log", t.path(f"victim{round_}"), "--crashed")
    steady.terminate()
    assert steady.wait(harness.SOON) == 0, t.path("steady.said").read_text()
    d.stop()
    check(t, t.path("a.raw"), t.path("b.raw"), "--log", t.path("steady"), "--before", "18446744073709551614")


def test_the_daemon_dies(t):
    """A daemon killed under load, with a snapshot alive: the next one waits for the lock, takes over the sockets and the
    snapshot, serves disks that hold all that was acknowledged, and leaves nothing behind."""
    images = disks(t)
    control, nbd = t.path("control0.sock"), t.path("nbd0.sock")
    for round_ in range(4):
        t.daemons.clear()  # the same socket paths each time, stale ones from the second round on
        d = t.daemon(images)
        assert d.control == control and nbd.exists()
        assert [s["name"] for s in d.status()["snapshots"]] == (["s"] if round_ else [])
        if round_:
            d.fleece("snapshot", "delete", "s")
            check(t, d.uri("vda"), d.uri("vdb"), "--log", t.path(f"log{round_ - 1}"), "--crashed")
        writer = write(t, d, f"log{round_}", "--writers", "4", "--queue", "4", "--until-disconnect", "--fua-every", "20",
                       "--flush-every", "100")
        harness.wait_for("the writer writes", lambda: d.status()["disks"][1]["writes"] > 200)
        d.fleece("snapshot", "create", "s")
        time.sleep(0.1 * round_)
        d.kill()
        assert writer.wait(harness.SOON) == 0, t.path(f"log{round_}.said").read_text()
    t.daemons.clear()
    d = t.daemon(images)
    check(t, d.uri("vda"), d.uri("vdb"), "--log", t.path("log3"), "--crashed")
    d.stop()


def test_the_daemon_dies_and_is_back_at_once(t):
    """The new daemon starts while the dead one's writes may still be landing."""
    images = disks(t)
    d = t.daemon(images)
    writer = write(t, d, "log", "--writers", "8", "--queue", "16", "--until-disconnect")
    harness.wait_for("the writer writes", lambda: d.status()["disks"][1]["writes"] > 200)
    d.process.kill()  # not reaped: its writes may be in flight yet
    t.daemons.clear()
    again = t.daemon(images)
    d.process.wait()
    assert writer.wait(harness.SOON) == 0, t.path("log.said").read_text()
    check(t, again.uri("vda"), again.uri("vdb"), "--log", t.path("log"), "--crashed")
    again.stop()
    assert not list(t.dir.glob("*.sock")), "a socket was left behind"


def test_the_lock_is_waited_for(t):
    """A daemon waits for the lock of another one, and serves the disk as soon as that one has let it go."""
    image = t.disk("a.raw", 4 * MIB, fill=1)
    first = t.daemon({"vda": image})
    second = t.daemon({"vda": image}, "--name", f"{t.vm}-second", wait=False)
    time.sleep(1)
    assert second.process.poll() is None, second.log()
    first.stop()
    second.wait_ready()
    second.stop()


harness.main()
