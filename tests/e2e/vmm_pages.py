#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/vmm/cloud-hypervisor.md, docs/vmm/firecracker.md and docs/vmm/crosvm.md, run as they stand there. These VMMs need
KVM, so a front-end with their manners (tests/vhost) stands in for each: it takes the socket and the rings' sizes from the
page's command line or configuration, whose words must be such as the VMM has. And the units of docs/vmm/README.md and
docs/vmm/libvirt.md."""
import json
import re
import shlex

import harness
import page_kit

MIB = 1 << 20
CLIENT = "tests/vhost/vhost_client"
OPTIONS = {"cloud-hypervisor": {"--cpus", "--memory", "--kernel", "--cmdline", "--disk"},
           "firecracker": {"--no-api", "--config-file"},
           "crosvm": {"run", "--cpus", "--mem", "--vhost-user", "-p"}}
DRIVE = {"drive_id", "socket", "is_root_device", "cache_type"}  # what a vhost-user drive may have, besides "partuuid"


def pairs(text):
    """"a=1,b=2" as a dictionary; a first word alone is the type."""
    found = dict(word.split("=", 1) if "=" in word else ("type", word) for word in text.split(","))
    assert "=" not in found.get("type", ""), text
    return found


def words_of(page, name):
    words = shlex.split(page.pick(name)[0])[1:]
    unknown = [w for w in words if w.startswith("-") and w not in OPTIONS[name]]
    assert not unknown, f"{page.name}: {name} has no {unknown}"
    return words


def cloud_hypervisor(_, page):
    words = words_of(page, "cloud-hypervisor")
    disk = pairs(words[words.index("--disk") + 1])
    assert pairs(words[words.index("--memory") + 1])["shared"] == "on"
    assert set(disk) == {"vhost_user", "socket", "num_queues", "queue_size"} and disk["vhost_user"] == "on", disk
    assert int(disk["num_queues"]) <= int(pairs(words[words.index("--cpus") + 1])["boot"])
    return disk["socket"], ["--like", "cloud-hypervisor", "--queues", disk["num_queues"], "--queue-size", disk["queue_size"]]


def firecracker(t, page):
    words = words_of(page, "firecracker")
    config, = page.only("json")
    drive, = json.loads(config)["drives"]
    assert words == ["--no-api", "--config-file", "web1.json"] and set(drive) == DRIVE, (words, drive)
    assert drive["cache_type"] == "Writeback" and drive["is_root_device"] is True
    curl, = (text for kind, text in page.blocks if not kind and "curl" in text)
    assert json.loads(re.search(r"-d '(.*)'", curl)[1]) == drive, curl
    return drive["socket"], ["--like", "firecracker"]


def crosvm(_, page):
    words = words_of(page, "crosvm")
    disk = pairs(words[words.index("--vhost-user") + 1])
    assert words[0] == "run" and set(disk) == {"type", "socket", "max-queue-size"} and disk["type"] == "block", disk
    return disk["socket"], ["--like", "crosvm", "--queues", words[words.index("--cpus") + 1], "--queue-size",
                            disk["max-queue-size"]]


def points(t):
    """The kind of the disk in each point of the set."""
    folders = sorted(p for p in t.path("web1-backups").iterdir() if (p / "manifest.json").exists())
    return [json.loads((p / "manifest.json").read_text())["disks"][0]["kind"] for p in folders]


def life(t, name, stand_in, survives):
    page = page_kit.Page(f"docs/vmm/{name}.md")
    t.borrow_vm("web1")
    t.disk("web1.raw", 8 * MIB, 3)
    (serve,), (backup, listed) = page.pick("fleeced"), page.pick("fleece")
    d = page_kit.start_daemon(t, serve)
    socket, manners = stand_in(t, page)
    arguments = [t.program(CLIENT), "model", socket, *manners, "--requests", "1000000", "--size", "4m"]

    def at_work():
        before = d.status()["disks"][0]["writes"]
        harness.wait_for("the guest writes", lambda: d.status()["disks"][0]["writes"] > before + 20)
        assert guest.poll() is None, "the guest has seen an error"

    guest = t.spawn(*arguments, *(["--reconnect"] if survives else []), cwd=t.dir)
    at_work()
    page_kit.run(t, backup)
    at_work()
    if not survives:  # it is shut down first
        guest.terminate()
        guest.wait()
    t.daemons.pop().stop()  # a new version
    d = page_kit.start_daemon(t, serve)
    if not survives:
        guest = t.spawn(*arguments, cwd=t.dir)
    at_work()
    page_kit.run(t, backup)
    assert points(t) == ["full", "incremental"]
    assert page_kit.run(t, listed).count("vda") >= 2
    guest.kill()
    guest.wait()
    d.stop()
    t.fleece("verify", t.path("web1-backups"))


def test_cloud_hypervisor(t):
    life(t, "cloud-hypervisor", cloud_hypervisor, True)


def test_firecracker(t):
    life(t, "firecracker", firecracker, False)


def test_crosvm(t):
    life(t, "crosvm", crosvm, False)


def test_units(t):
    """systemd finds nothing wrong with the unit, alone and with libvirt's drop-in; the file of options is one."""
    harness.need("systemd-analyze")
    unit = (harness.BUILD / "fleeced@.service").read_text()
    start, = re.findall(r"^ExecStart=(\S+) ", unit, re.M)
    t.path("fleeced@web1.service").write_text(unit.replace(start, str(t.program("fleeced"))))
    drop_in, = (text for kind, text in page_kit.Page("docs/vmm/libvirt.md").blocks if "[Service]" in text)

    def verify():
        done = t.run("systemd-analyze", "verify", "--man=no", t.path("fleeced@web1.service"), status=None)
        # What it says of other units of this machine is not ours.
        lines = (done.stdout + done.stderr).splitlines()
        wrong = [line for line in lines if "fleeced" in line and "libvirt-qemu" not in line]
        assert not wrong, "\n".join(wrong)

    verify()
    t.path("fleeced@web1.service.d").mkdir()
    override = t.path("fleeced@web1.service.d/override.conf")
    override.write_text(drop_in)
    verify()
    override.write_text(drop_in.replace("RuntimeDirectoryMode=0700", "RuntimeMode=0700"))
    try:
        verify()
    except AssertionError as error:
        assert "RuntimeMode" in str(error), error
    else:
        raise AssertionError("systemd-analyze finds nothing wrong with anything")

    options, = (text for _, text in page_kit.Page("docs/vmm/README.md").blocks if text.startswith("disk = "))
    t.disk("web1.raw", MIB)
    t.path("sockets").mkdir()
    options = options.replace("/srv/", f"{t.dir}/").replace("/run/fleece/web1/", f"{t.dir}/sockets/")
    t.path("web1.conf").write_text(f"{options}control = {t.path('c.sock')}\n")
    d = harness.Daemon(t, [t.program("fleeced"), "--name", t.vm, "--config", t.path("web1.conf")], t.path("c.sock"),
                       f"unix:{t.path('sockets/nbd.sock')}", t.environment, "fleeced.log")
    t.daemons.append(d)
    d.wait_ready()
    assert t.path("sockets/vda.sock").is_socket()
    d.stop()


harness.main()
