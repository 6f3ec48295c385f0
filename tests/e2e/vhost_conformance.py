#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own vhost-user front-end (tests/vhost): what it does to one disk, the guest of another does not notice; rings and
memory of many shapes; many deaths of the daemon; and qemu-storage-daemon, which proves the front-end itself."""
import json
import re
import time

import harness

MIB = 1 << 20
CLIENT = "tests/vhost/vhost_client"
VMMS = ("cloud-hypervisor", "firecracker", "firecracker-unsafe", "crosvm")


def daemon(t, **disks):
    """Each of {name: path or "path,option=value"} has a socket NAME.v."""
    options = []
    for name in disks:
        options += ["--vhost-user", f"{name}={t.path(f'{name}.v')}"]
    return t.daemon(disks, *options)


def client(t, verb, disk, *options, **how):
    return t.run(t.program(CLIENT), verb, t.path(f"{disk}.v"), *options, **how)


def model(t, disk, *options):
    """In the background."""
    said = open(t.path(f"model-{len(t.processes)}"), "wb")
    return t.spawn(t.program(CLIENT), "model", t.path(f"{disk}.v"), *options, stdout=said, stderr=-2)


def test_bad_behaviour_hurts_no_neighbour(t):
    """Each case on one disk, while the guest of the other disk of the daemon goes on."""
    d = daemon(t, vda=t.disk("a.raw", 16 * MIB), vdb=t.disk("b.raw", 16 * MIB))
    neighbour = model(t, "vdb", "--requests", "1000000", "--queues", "2", "--size", "4m")
    done = client(t, "conform", "vda", "--packed", status=None, timeout=120)
    passed = set(re.findall(r"^PASS (\S+)$", done.stdout, re.M))
    assert done.returncode == 0 and len(passed) > 70, f"{done.stdout}{done.stderr}"
    before = d.status()["disks"][1]["writes"]
    harness.wait_for("the neighbour writes", lambda: d.status()["disks"][1]["writes"] > before)
    assert neighbour.poll() is None, "the guest of the other disk was hurt"
    neighbour.kill()
    neighbour.wait()
    d.stop()


def test_growth(t):
    """The disk grows under a front-end that listens, answers, does neither, has closed the channel, or gave none."""
    d = daemon(t, vda=t.disk("a.raw", 4 * MIB))
    grow = f"'{t.program('fleece')}' --control '{d.control}' resize vda"
    cases = [name for name in client(t, "conform", "vda", "--list").stdout.split() if name.startswith("growth-")]
    assert len(cases) == 7, cases
    for number, name in enumerate(cases):
        packed = ["--packed"] if number % 2 else []
        done = client(t, "conform", "vda", "--only", name, "--grow", grow, *packed, status=None)
        assert done.returncode == 0 and f"PASS {name}" in done.stdout, f"{done.stdout}{done.stderr}{d.log()}"
    assert "SKIP growth-told" in client(t, "conform", "vda", "--only", "growth-told").stdout
    d.stop()


def test_shapes(t):
    """Small rings, sizes that are no power of two, tables behind direct descriptors, buffers in two regions."""
    d = daemon(t, vda=t.disk("a.raw", 16 * MIB))
    for seed, options in enumerate((["--queues", "4", "--queue-size", "16", "--mixed"], ["--across", "--regions", "2"],
                                    ["--mem-slots", "--regions", "8", "--depth", "64", "--no-event-idx", "--no-ack"],
                                    ["--packed", "--queue-size", "100", "--no-indirect", "--no-event-idx"])):
        said = json.loads(client(t, "model", "vda", "--seed", str(seed + 1), "--size", "4m", "--requests", "600",
                                 *options).stdout)
        assert said["reads"] > 100 and said["writes"] > 100 and said["discards"] > 10 and said["zeroes"] > 10, said
    d.stop()


def load(t, *options):
    """Some verified requests; for longer where a moment is not enough."""
    for seconds in ("0.3", "3", "30"):
        said = json.loads(client(t, "run", "vda", "--rw", "randrw", "--depth", "16", "--seconds", seconds, "--size", "4m",
                                 "--verify", *options).stdout)
        if said["requests"] > 50:
            return
    raise AssertionError(f"too few requests: {said}")


def test_load_is_verified(t):
    d = daemon(t, vda=t.disk("a.raw", 16 * MIB))
    for options in ([], ["--packed", "--queues", "2", "--poll"]):
        load(t, *options)
    d.stop()


def outlived(guest, d):
    """The guest goes on after the last death, and has seen no error."""
    before = d.status()["disks"][0]["writes"]
    harness.wait_for("the guest writes after the last death", lambda: d.status()["disks"][0]["writes"] > before + 20)
    assert guest.poll() is None, "the guest has seen an error"
    guest.kill()
    guest.wait()
    d.stop()


def test_many_deaths(t):
    """The daemon dies again and again under a guest that resubmits nothing, at another moment each time (C10, C14): nothing
    is lost, done twice or wrong."""
    disk = t.disk("a.raw", 16 * MIB)
    d = daemon(t, vda=disk)
    guest = model(t, "vda", "--requests", "1000000", "--depth", "64", "--queues", "2", "--reconnect", "--size", "4m")
    for round_ in range(8):
        before = d.status()["disks"][0]["writes"]
        harness.wait_for("the guest writes", lambda: d.status()["disks"][0]["writes"] > before + 20)
        time.sleep(0.01 * round_)
        d.kill()
        t.daemons.clear()  # the same socket paths again
        d = daemon(t, vda=disk)
        assert guest.poll() is None, "the guest has seen an error"
    outlived(guest, d)


def test_the_manners_of_vmms(t):
    """Random requests with the manners of each VMM (tests/vhost/vmm.c; a life with each is among the cases of conform)."""
    d = daemon(t, vda=t.disk("a.raw", 16 * MIB))
    for vmm in VMMS:
        said = json.loads(client(t, "model", "vda", "--like", vmm, "--size", "4m", "--requests", "400").stdout)
        assert said["reads"] > 100 and said["writes"] > 50, (vmm, said)
        assert (said["flushes"] > 0) == (vmm != "firecracker-unsafe"), (vmm, said)
    d.stop()


def test_cloud_hypervisor_survives_kill(t):
    """It sets the base of a ring to what its driver has made available, so only the in-flight region tells what is to be
    done, and it asks for nothing again."""
    disk = t.disk("a.raw", 16 * MIB)
    d = daemon(t, vda=disk)
    guest = model(t, "vda", "--like", "cloud-hypervisor", "--requests", "1000000", "--depth", "64", "--reconnect", "--size",
                  "4m")
    for kill in (True, False, True):
        before = d.status()["disks"][0]["writes"]
        harness.wait_for("the guest writes", lambda: d.status()["disks"][0]["writes"] > before + 20)
        d.kill() if kill else d.stop()
        t.daemons.clear()
        d = daemon(t, vda=disk)
    outlived(guest, d)


def test_snapshots_end_when_the_guest_may_go_elsewhere(t):
    """A guest that stops in mid-migration: its snapshots break, and say why; when it goes on here, there can be new ones."""
    d = daemon(t, vda=t.disk("a.raw", 16 * MIB))
    d.fleece("snapshot", "create", "old")
    client(t, "conform", "vda", "--only", "log-event")
    assert "broken" not in d.fleece("snapshot", "list").stdout
    assert client(t, "conform", "vda", "--only", "log-and-stay").stdout.startswith("PASS")
    qmp = harness.Qmp(d.control)
    old = [s for s in qmp.execute("fleece-query-snapshots") if s["name"] == "old"][0]
    assert "the VM migrates" in json.dumps(old), old
    qmp.close()
    d.fleece("snapshot", "create", "new")
    d.stop()


def test_a_disk_that_is_handed_over(t):
    """A daemon that awaits the VM tells a front-end how large the disk is, and serves it when the other daemon has let go of
    it; what was tracked there goes on here."""
    disk, where = t.disk("a.raw", 16 * MIB), t.path("set")
    old = daemon(t, vda=disk)
    old.fleece("backup", where)
    new = t.daemon({"vda": disk}, "--vhost-user", f"vda={t.path('there.v')}", "--incoming", "on", wait=False,
                   **t.other_host())
    harness.wait_for("the daemon awaits the VM", lambda: "is awaited" in new.log())
    guest = t.spawn(t.program(CLIENT), "model", t.path("there.v"), "--requests", "50", "--size", "4m")
    harness.wait_for("the new daemon wants the disk", lambda: "waiting up to" in new.log())
    assert guest.poll() is None and old.status()["disks"][0]["errors"] == 0
    old.stop()
    new.wait_ready()
    assert guest.wait(harness.SOON) == 0
    line = json.loads(new.fleece("--json", "backup", where).stdout.splitlines()[-1])
    assert line["disks"][0]["kind"] == "incremental" and line["disks"][0]["captured"] <= 4 * MIB, line
    new.stop()


def test_peer(t):
    """The same program against qemu-storage-daemon."""
    harness.need("qemu-storage-daemon")
    peer = t.spawn_server("qemu-storage-daemon", "--blockdev",
                          f"driver=file,node-name=disk,filename={t.disk('a.raw', 16 * MIB)},discard=unmap", "--export",
                          f"type=vhost-user-blk,id=v,node-name=disk,addr.type=unix,addr.path={t.path('vda.v')},writable=on,"
                          "num-queues=4")
    for options in (["--queues", "4", "--queue-size", "16"], ["--no-event-idx", "--no-indirect"]):
        said = json.loads(client(t, "model", "vda", "--size", "4m", "--requests", "600", *options).stdout)
        assert said["reads"] > 100 and said["writes"] > 100, said
    load(t)
    # It ignores the offset of GET_CONFIG, and has no in-flight region: the cases tell.
    for case in ("config-sizes", "protocol-features"):
        assert client(t, "conform", "vda", "--only", case, status=1).stdout.startswith(f"FAIL {case}: ")
    peer.terminate()
    peer.wait(harness.SOON)


harness.main()
