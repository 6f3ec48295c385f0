# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks over vhost-user-blk, with the front-end of tests/vhost as the guest."""
import json
import os
import re
import signal
import stat
import time

import harness
from harness import BUILD, wait_for

CLIENT = BUILD / "tests/vhost/vhost_client"


def serve(t, size=64 << 20, fill=None, suboptions="", **options):
    disk = t.disk("a.raw", size, fill)
    socket = t.path("vda.sock")
    d = t.daemon({"vda": f"{disk}{suboptions}"}, "--vhost-user", f"vda={socket}", **options)
    return d, disk, socket


def client(t, *arguments, **options):
    return t.run(CLIENT, *arguments, **options).stdout


def model(t, socket, *arguments):
    return json.loads(client(t, "model", socket, *arguments))


def descriptors(d):
    return len(os.listdir(f"/proc/{d.pid}/fd"))


def vhost_status(d):
    return d.status()["vhost-user"][0]


def test_socket_and_status(t):
    d, _, socket = serve(t)
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
    assert f"vhost-user on vda={socket}" in d.log()
    assert vhost_status(d) == {"disk": "vda", "socket": str(socket), "connected": False, "queues": 0, "connections": 0,
                               "requests": 0, "kicks": 0, "calls": 0, "polled": 0}, vhost_status(d)
    result = json.loads(client(t, "run", socket, "--seconds", "0.2", "--rw", "randrw", "--depth", "8"))
    assert result["requests"] > 0
    wait_for("the connection is over", lambda: not vhost_status(d)["connected"])
    assert re.search(rf"^vda +- +0 +{vhost_status(d)['requests']} +{socket}$", d.fleece("status").stdout, re.M)
    status = vhost_status(d)
    assert status["connections"] == 1 and status["requests"] >= result["requests"], status
    with d.qmp() as qmp:
        exports = {e["id"]: e["type"] for e in qmp.execute("query-block-exports")}
    assert exports == {"vda": "nbd", "vhost-user/vda": "vhost-user-blk"}, exports
    d.stop()
    assert not os.path.exists(socket)


def test_bad_behaviour(t):
    """Each case of the front-end's conformance suite; the disk serves on, and no descriptor is left behind."""
    d, _, socket = serve(t)
    client(t, "run", socket, "--seconds", "0.1")
    before = descriptors(d)
    out = client(t, "conform", socket)
    assert " 0 failed" in out, out
    wait_for("descriptors are given back", lambda: descriptors(d) <= before)
    model(t, socket, "--requests", "200")
    d.stop()


def test_read_only(t):
    d, disk, socket = serve(t, fill=b"r" * (1 << 20), size=1 << 20, suboptions=",read-only=on")
    out = client(t, "conform", socket, "--only", "read-only")
    assert "1 passed" in out, out
    assert disk.read_bytes() == b"r" * (1 << 20)
    d.stop()


def test_requests_against_a_model(t):
    d, _, socket = serve(t)
    for options in ([], ["--packed", "--queues", "3", "--regions", "5", "--across"], ["--queues", "4", "--no-event-idx"],
                    ["--packed", "--no-indirect", "--mem-slots"]):
        assert model(t, socket, "--requests", "400", *options)["writes"] > 100
    d.stop()


def test_qcow2(t):
    image = t.path("a.qcow2")
    t.run("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    socket = t.path("vda.sock")
    d = t.daemon({"vda": f"{image},format=qcow2"}, "--vhost-user", f"vda={socket}")
    model(t, socket, "--requests", "400", "--queues", "2")
    d.stop()
    t.run("qemu-img", "check", "-q", "-r", "leaks", image)  # nothing but clusters that leak


def run_through_restarts(t, restart, *options):
    """A model that runs while the daemon goes away and comes back; it fails on a wrong byte and on any error."""
    d, disk, socket = serve(t)
    for requests in (1200, 6000, 30000):  # more where it was done too soon
        guest = t.spawn(CLIENT, "model", socket, "--reconnect", "--requests", str(requests), *options, stdout=-1, text=True)
        for _ in range(2):
            before = vhost_status(d)["requests"]
            wait_for("the guest is at work", lambda: vhost_status(d)["requests"] > before + 20 or
                     guest.poll() is not None)
            restart(d)
            d = t.daemon({"vda": disk}, "--vhost-user", f"vda={socket}")
        out, _ = guest.communicate(timeout=2 * harness.SOON)
        assert guest.returncode == 0, out
        if json.loads(out)["reconnects"] == 2:
            break
    else:
        raise AssertionError(f"the guest was to live through two restarts: {out}")
    d.stop()


def test_the_guest_survives_kill(t):
    run_through_restarts(t, lambda d: d.kill(), "--depth", "16")


def test_the_guest_survives_kill_packed(t):
    run_through_restarts(t, lambda d: d.kill(), "--packed", "--queues", "2")


def test_the_guest_survives_an_orderly_restart(t):
    run_through_restarts(t, lambda d: d.stop(), "--queues", "2")


def test_a_snapshot_is_pulled_while_the_guest_writes(t):
    size = 32 << 20
    content = harness.pattern(size)
    d, disk, socket = serve(t, size, content)
    d.fleece("snapshot", "create", "s")
    guest = t.spawn(CLIENT, "run", socket, "--rw", "randwrite", "--depth", "8", "--seconds", "600", stdout=-1, text=True)
    wait_for("the guest writes", lambda: vhost_status(d)["requests"] > 100)
    copy = t.path("copy.raw")
    t.run("nbdcopy", d.uri("vda@s"), copy)
    before = vhost_status(d)["requests"]
    wait_for("the guest writes still", lambda: vhost_status(d)["requests"] > before)
    assert guest.poll() is None, "the guest was to write all the time"
    assert copy.read_bytes() == content
    guest.kill()
    guest.wait()
    assert disk.read_bytes() != content
    d.fleece("snapshot", "delete", "s")
    d.stop()


def test_one_front_end_at_a_time(t):
    """The second one waits for the first; a front-end that is killed makes room."""
    d, _, socket = serve(t)
    first = t.spawn(CLIENT, "run", socket, "--seconds", "60", stdout=-1)
    wait_for("the first is served", lambda: vhost_status(d)["requests"] > 10)
    second = t.spawn(CLIENT, "run", socket, "--seconds", "0.2", stdout=-1)
    time.sleep(0.3)
    assert second.poll() is None and vhost_status(d)["connections"] == 1
    first.send_signal(signal.SIGKILL)
    first.wait()
    second.communicate(timeout=harness.SOON)
    assert second.returncode == 0
    d.stop()


def test_an_idle_guest_costs_nothing(t):
    """A connected front-end that asks for nothing: no processor time."""
    d, _, socket = serve(t)
    guest = t.spawn(CLIENT, "run", socket, "--seconds", "0.3", stdout=-1)
    guest.communicate(timeout=harness.SOON)
    guest = t.spawn(CLIENT, "run", socket, "--seconds", "60", stdout=-1)
    wait_for("it is at work", lambda: vhost_status(d)["requests"] > 100)
    guest.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    ticks = lambda: sum(int(x) for x in open(f"/proc/{d.pid}/stat").read().rsplit(")", 1)[1].split()[11:13])
    before = ticks()
    time.sleep(1)
    used = ticks() - before
    guest.send_signal(signal.SIGKILL)
    guest.wait()
    assert used <= 5, f"{used} of 100 ticks of processor time in an idle second"
    d.stop()


harness.main()
