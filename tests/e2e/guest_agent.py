#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots freeze the guest for their cut: through a guest agent, which is a fake one here, and through hooks. A real one
is in tests/guest/freeze.py; all that an agent can do wrong is in tests/sim/freezer_test.c."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import threading
import time

import nbd

import frozen_kit
import harness
import listener

MIB = 1 << 20


class Agent(listener.Listener):
    """A guest with three file systems, whose agent listens on a socket as QEMU does: one client at a time."""

    def __init__(self, path):
        self.frozen, self.said = 0, []
        self.deaf = threading.Event()    # hears, and does nothing
        self.refuses = threading.Event()  # freezes one file system, and fails
        self.hold = {}                   # command -> Event: it is done and answered when that is set
        self.heard = {name: threading.Event() for name in ("freeze", "thaw")}
        self.frozen_at, self.frozen_for = 0, []
        super().__init__(path)

    def __exit__(self, *_):
        self.over = True
        for event in self.hold.values():
            event.set()
        super().__exit__()

    def serve(self, connection):
        buffer = b""
        while not self.over:
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                self.hear(connection, line)
            data = connection.recv(1000)
            if not data:
                break
            buffer += data

    def hear(self, connection, line):
        if line.startswith(b"\xff"):
            line = line[1:]
        command = json.loads(line)
        name = command["execute"].removeprefix("guest-fsfreeze-")
        self.said.append(name)
        if name in self.heard:
            self.heard[name].set()
        if name in self.hold and not self.hold[name].wait(harness.SOON):
            return
        if self.deaf.is_set():
            return
        reply = self.obey(name, command)
        sentinel = b"\xff" if name == "guest-sync-delimited" else b""
        connection.sendall(sentinel + json.dumps(reply).encode() + b"\n")

    def obey(self, name, command):
        if name == "guest-sync-delimited":
            return {"return": command["arguments"]["id"]}
        if name == "status":
            return {"return": "frozen" if self.frozen else "thawed"}
        if name == "freeze":
            self.frozen, self.frozen_at = 1 if self.refuses.is_set() else 3, time.monotonic()
            return {"error": {"class": "GenericError", "desc": "/ is busy"}} if self.refuses.is_set() else {"return": 3}
        was, self.frozen = self.frozen, 0
        if was:
            self.frozen_for.append(time.monotonic() - self.frozen_at)
        return {"return": was}


@contextlib.contextmanager
def served(t, *options, **more):
    with Agent(t.path("agent.sock")) as agent:
        d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--guest-agent", agent.path, *options, **more)
        yield d, agent
        assert agent.frozen == 0


def create(d, name, *options, status=0):
    done = d.fleece("--json", "snapshot", "create", name, *options, status=status)
    return json.loads(done.stdout) if status == 0 else done.stderr


def hook(folder, name, script):
    folder.mkdir(exist_ok=True, mode=0o755)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_frozen_for_the_cut(t):
    """Frozen before the cut, thawed right after it, and told: in the reply, the list, the status and the manifest."""
    with served(t) as (d, agent):
        s = create(d, "s")
        assert s["consistent"] == "guest-agent" and s["frozen-us"] > 0 and "consistent-reason" not in s, s
        assert agent.said == ["guest-sync-delimited", "status", "guest-sync-delimited", "freeze",
                              "guest-sync-delimited", "thaw"], agent.said
        plain = create(d, "plain", "--consistency", "crash")
        assert plain["consistent"] == "crash" and len(agent.said) == 6, (plain, agent.said)
        assert create(d, "r", "--consistency", "required")["consistent"] == "guest-agent"
        listed = d.fleece("snapshot", "list").stdout
        assert "CONSISTENT" in listed and "guest-agent" in listed and "crash" in listed, listed
        status = d.status()
        assert status["guest"] == {"state": "idle", "freeze-timeout-ms": 10000, "agent": f"unix:{agent.path}"}, status
        assert f"guest: idle, agent unix:{agent.path}\n" in d.fleece("status").stdout
        d.fleece("backup", t.path("set"))
        point = json.loads(d.fleece("--json", "list", t.path("set")).stdout)
        assert point["consistent"] == "guest-agent", point
        assert "(guest-agent)" in d.fleece("list", t.path("set")).stdout
        d.fleece("push", "--to", f"vda={t.path('push.raw')}")
        assert agent.said.count("freeze") == 4 and len(agent.frozen_for) == 4, agent.said


def test_snapshots_that_outlive_the_daemon_say_it(t):
    with served(t) as (d, agent):
        create(d, "s")
        d.kill()
        d = t.daemon({"vda": t.path("a.raw")}, "--guest-agent", agent.path)
        snapshots = d.status()["snapshots"]
        assert [s["consistent"] for s in snapshots] == ["guest-agent"] and snapshots[0]["frozen-us"] > 0, snapshots


def test_the_agent_does_not_answer(t):
    """Nobody answers: crash-consistent, with the reason, or refused; the guest's I/O goes on meanwhile."""
    with served(t, "--freeze-timeout", "0.5") as (d, agent):
        agent.deaf.set()
        s = create(d, "s")
        assert s["consistent"] == "crash" and "does not answer" in s["consistent-reason"], s
        said = create(d, "r", "--consistency", "required", status=1)
        assert "snapshot 'r' refused: the guest agent does not answer" in said, said
        assert agent.heard["freeze"].is_set() is False
        done = d.fleece("backup", t.path("set"), status=3)
        assert "the backup is crash-consistent: the guest agent does not answer" in done.stderr, done.stderr
        assert json.loads(d.fleece("--json", "list", t.path("set")).stdout)["consistent"] == "crash"
        assert "refused" in d.fleece("backup", t.path("set"), "--consistency", "required", status=1).stderr
        assert [s["name"] for s in d.status()["snapshots"]] == ["s"]
        for command in (("snapshot", "list"), ("status",)):
            line = d.fleece(*command).stdout.splitlines()[-1]
            assert line.startswith("s ") and " crash " in line and s["consistent-reason"] in line, line


def push(t, d, name, *options, status=0):
    return d.fleece("--json", "push", "--to", f"vda={t.path(name)}", *options, status=status)


def last_line(done):
    return json.loads(done.stdout.splitlines()[-1])


def test_pushes(t):
    """A push freezes for its cut, leaves the guest alone, or is refused, as a snapshot is; its job says how it was."""
    with served(t) as (d, agent):
        done = last_line(push(t, d, "a.out", "--consistency", "required"))
        assert done["consistent"] == "guest-agent" and agent.said.count("freeze") == 1, (done, agent.said)
        done = last_line(push(t, d, "b.out", "--consistency", "crash"))
        assert done["consistent"] == "crash" and agent.said.count("freeze") == 1, (done, agent.said)
        assert "auto, crash or required" in push(t, d, "c.out", "--consistency", "maybe", status=2).stderr
        with d.qmp() as qmp:
            backup = {"device": "vda", "target": str(t.path("d.out")), "sync": "full", "auto-finalize": False}
            with contextlib.suppress(harness.QmpError):
                qmp.execute("blockdev-backup", consistency="maybe", **backup)
                raise AssertionError("consistency may be 'maybe'")
            qmp.execute("blockdev-backup", consistency="required", **backup)
            job, = qmp.execute("query-block-jobs")
            assert job["consistent"] == "guest-agent" and job["frozen-us"] > 0 and job["hold-ns"] > 0, job
            harness.wait_for("it is pending", lambda: qmp.execute("query-jobs")[0]["status"] == "pending")
            qmp.execute("job-finalize", id="vda")
        harness.wait_for("no job is left", lambda: not d.status()["snapshots"])


def test_pushes_of_a_guest_that_can_not_be_frozen(t):
    with served(t, "--freeze-timeout", "0.5") as (d, agent):
        agent.deaf.set()
        done = push(t, d, "e.out", status=3)
        assert last_line(done)["consistent"] == "crash", done.stdout
        assert "what is pushed is crash-consistent: the guest agent does not answer" in done.stderr, done.stderr
        said = push(t, d, "f.out", "--consistency", "required", status=1).stderr
        assert "refused: the guest agent does not answer" in said and not t.path("f.out").exists(), said
        harness.wait_for("no job is left", lambda: not d.status()["snapshots"])


def test_the_agent_fails(t):
    """It freezes a part and fails, or nobody listens at all."""
    with served(t) as (d, agent):
        agent.refuses.set()
        s = create(d, "s")
        assert s["consistent"] == "crash" and "/ is busy" in s["consistent-reason"], s
        harness.wait_for("it has thawed", lambda: agent.frozen == 0)
        agent.path.unlink()
        s = create(d, "t")
        assert s["consistent"] == "crash" and "can't be reached" in s["consistent-reason"], s
        assert "snapshot 't' is crash-consistent: the guest agent can't be reached" in d.log()


def test_io_goes_on_while_the_guest_is_frozen(t):
    """The daemon waits for the agent, which takes its time to freeze and to thaw: whoever writes is served at once."""
    with served(t, "--freeze-timeout", "60") as (d, agent):
        agent.hold = {"freeze": threading.Event(), "thaw": threading.Event()}
        with d.qmp() as qmp:
            qmp.send("fleece-snapshot-create", name="s")
            client = nbd.NBD()
            client.connect_uri(d.uri("vda"))
            assert agent.heard["freeze"].wait(harness.SOON)
            client.pwrite(b"a" * 4096, 0)
            assert d.status()["guest"]["state"] == "freezing"
            agent.hold["freeze"].set()
            assert agent.heard["thaw"].wait(harness.SOON)
            client.pwrite(b"b" * 4096, 0)
            client.flush()
            assert d.status()["guest"]["state"] == "thawing"
            agent.hold["thaw"].set()
            assert qmp.receive()["consistent"] == "guest-agent"
            client.shutdown()
        view = nbd.NBD()
        view.connect_uri(d.uri("vda@s"))
        assert view.pread(4096, 0) == b"a" * 4096
        view.shutdown()


def test_the_guest_takes_too_long(t):
    """It freezes when nobody waits for it any more: the snapshot was made without, and the guest is thawed all the same."""
    with served(t, "--freeze-timeout", "4") as (d, agent):
        agent.hold = {"freeze": threading.Event()}
        s = create(d, "s")
        assert s["consistent"] == "crash" and "has not answered guest-fsfreeze-freeze in time" in s["consistent-reason"], s
        assert agent.said[-1] == "freeze"
        agent.hold["freeze"].set()
        harness.wait_for("it has frozen and thawed", lambda: agent.frozen_for and agent.said[-1] == "thaw")


def test_the_client_dies(t):
    """The client that a snapshot is made for is killed while the guest is frozen for it."""
    with served(t) as (d, agent):
        agent.hold = {"freeze": threading.Event()}
        backup = t.spawn(t.program("fleece"), "--control", d.control, "backup", t.path("set"), "--grace", "0", stderr=-3)
        assert agent.heard["freeze"].wait(harness.SOON)
        backup.kill()
        backup.wait()
        harness.wait_for("the snapshot is given up", lambda: not d.status()["snapshots"])
        agent.hold["freeze"].set()
        harness.wait_for("the guest has thawed", lambda: d.status()["guest"]["state"] == "idle" and agent.frozen == 0)
        assert agent.said[-1] == "thaw"


def test_the_daemon_is_killed_while_the_guest_is_frozen(t):
    """kill -9 between freeze and thaw: the next start thaws, and so does --thaw, which serves nothing."""
    with Agent(t.path("agent.sock")) as agent:
        log, hooks = t.path("log"), t.path("hooks")
        hook(hooks, "db", f"echo $1 $FLEECE_VM $FLEECE_SNAPSHOT >>{log}")
        image = t.disk("a.raw", 8 * MIB)
        options = ["--guest-agent", agent.path, "--hook-dir", hooks]
        for round_ in range(2):
            agent.hold, held = {"thaw": threading.Event()}, None
            agent.heard["thaw"].clear()
            log.unlink(missing_ok=True)
            d = t.daemon({"vda": image}, *options)
            with d.qmp() as qmp:
                qmp.send("fleece-snapshot-create", name="s")
                assert agent.heard["thaw"].wait(harness.SOON) and agent.frozen == 3
                d.kill()
            held, agent.deaf = agent.hold["thaw"], threading.Event()
            agent.deaf.set()  # what the dead one has said is not heard
            agent.hold = {}
            held.set()
            harness.wait_for("the dead one's line is dropped", lambda: agent.said[-1] == "thaw")
            assert agent.frozen == 3
            agent.deaf.clear()
            if round_ == 0:
                d = t.daemon({"vda": image})  # without the options: the record says what is to be done
                harness.wait_for("it has thawed", lambda: agent.frozen == 0 and "thaw" in log.read_text())
                assert "was killed while it made snapshot 's'" in d.log()
                assert not d.status()["snapshots"]
                d.stop()
            else:
                done = t.run(t.program("fleeced"), "--thaw", "--name", t.vm)
                assert "was killed while it made snapshot 's'" in done.stderr
                t.run(t.program("fleeced"), "--thaw", "--name", t.vm)  # nothing is left to thaw
            assert agent.frozen == 0
            assert log.read_text() == f"freeze {t.vm} s\nthaw {t.vm} s\n", log.read_text()


def test_the_daemon_ends_while_the_guest_is_frozen(t):
    """SIGTERM: the guest thaws before its disks go away."""
    with Agent(t.path("agent.sock")) as agent:
        agent.hold = {"freeze": threading.Event()}
        d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--guest-agent", agent.path)
        with d.qmp() as qmp:
            qmp.send("fleece-snapshot-create", name="s")
            assert agent.heard["freeze"].wait(harness.SOON)
            d.process.send_signal(signal.SIGTERM)
            agent.hold["freeze"].set()
            d.wait()
        assert agent.frozen == 0 and agent.said[-1] == "thaw", agent.said


def test_the_daemon_ends_while_the_guest_does_not_thaw(t):
    """SIGTERM: it ends all the same, when the timeout is over, and leaves it noted that somebody has to thaw."""
    with Agent(t.path("agent.sock")) as agent:
        agent.hold = {"thaw": threading.Event()}
        d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--guest-agent", agent.path, "--freeze-timeout", "4")
        with d.qmp() as qmp:
            qmp.send("fleece-snapshot-create", name="s")
            assert agent.heard["thaw"].wait(harness.SOON)
            d.process.send_signal(signal.SIGTERM)
            assert d.process.wait(harness.SOON) == 0
        d.ended = True
        assert "the guest may still be frozen" in d.log()
        held, agent.hold = agent.hold["thaw"], {}
        held.set()
        t.run(t.program("fleeced"), "--thaw", "--name", t.vm)
        assert agent.frozen == 0


def test_hooks_that_fail_to_thaw(t):
    """Nobody else thaws what they have frozen: they are run again, and a snapshot says meanwhile why it is not frozen."""
    log, hooks, well = t.path("log"), t.path("hooks"), t.path("well")
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--hook-dir", hooks)
    hook(hooks, "db", f"echo $1 >>{log}; [ $1 = freeze ] || [ -e {well} ]")
    assert create(d, "s")["consistent"] == "hooks"
    harness.wait_for("it has failed", lambda: "hook db thaw failed" in d.status()["guest"].get("reason", ""))
    assert "hook db thaw failed with status 1" in create(d, "r", "--consistency", "required", status=1)
    well.touch()
    harness.wait_for("it has thawed", lambda: d.status()["guest"]["state"] == "idle")
    words = log.read_text().split()
    assert words[0] == "freeze" and len(words) > 2 and set(words[1:]) == {"thaw"}, words


def test_the_daemon_is_killed_while_a_hook_runs(t):
    """It goes on without its daemon: the next one ends it, or it would freeze after its thaw."""
    log, hooks = t.path("log"), t.path("hooks")
    hook(hooks, "db", f"echo $1 >>{log}; [ $1 = thaw ] || {{ echo $$ >{t.path('pid')}; sleep 60; echo frozen >>{log}; }}")
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--hook-dir", hooks, "--freeze-timeout", "120")
    run = pathlib.Path("/run" if os.getuid() == 0 else t.environment["XDG_RUNTIME_DIR"])
    record = run / "fleece" / t.vm / "freeze"
    with d.qmp() as qmp:
        qmp.send("fleece-snapshot-create", name="s")
        harness.wait_for("it runs", lambda: t.path("pid").exists() and t.path("pid").read_text().endswith("\n") and
                         "running" in record.read_text())
        d.kill()
    d = t.daemon({"vda": t.path("a.raw")}, "--hook-dir", hooks)
    harness.wait_for("it is undone", lambda: d.status()["guest"]["state"] == "idle")
    process = pathlib.Path("/proc", t.path("pid").read_text().strip(), "stat")
    harness.wait_for("it has ended", lambda: not process.exists() or ") Z" in process.read_text())
    assert log.read_text() == "freeze\nthaw\n", log.read_text()


def test_hooks(t):
    """Hooks alone; one that hangs is killed; those of libvirt."""
    log, hooks, bin_ = t.path("log"), t.path("hooks"), t.path("bin")
    bin_.mkdir()
    hooks.mkdir(mode=0o755)
    hook(bin_, "virsh", f"[ $2 != domstate ] || exec cat {t.path('domstate')}\n"
                        f'echo "virsh $*" >>{log}; [ ! -e {t.path("off")} ]')
    t.path("domstate").write_text("running\n\n")
    shutil.copy(harness.ROOT / "data/hooks/libvirt", hooks / "50-libvirt")
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--hook-dir", hooks, "--freeze-timeout", "6",
                 env={"PATH": f"{bin_}:{t.environment['PATH']}"})
    s = create(d, "s")
    assert s["consistent"] == "hooks", s
    harness.wait_for("the hook is over", lambda: d.status()["guest"]["state"] == "idle")
    assert log.read_text() == f"virsh --quiet domfsfreeze {t.vm}\nvirsh --quiet domfsthaw {t.vm}\n", log.read_text()
    hook(hooks, "60-hangs", f"echo i hang; echo hangs $1 >>{log}; [ $1 = thaw ] || sleep 1000")
    s = create(d, "r")
    assert s["consistent"] == "crash" and "hook 60-hangs freeze " in s["consistent-reason"], s
    harness.wait_for("all is undone", lambda: d.status()["guest"]["state"] == "idle")
    assert log.read_text().splitlines()[2:] == [f"virsh --quiet domfsfreeze {t.vm}", "hangs freeze", "hangs thaw",
                                                f"virsh --quiet domfsthaw {t.vm}"], log.read_text()
    assert "hook 60-hangs: i hang" in d.log()
    (hooks / "60-hangs").unlink()
    log.unlink()
    t.path("domstate").write_text("shut off\n\n")
    t.path("off").touch()
    s = create(d, "off")
    assert s["consistent"] == "crash" and "hook 50-libvirt freeze failed" in s["consistent-reason"], s
    harness.wait_for("all is undone", lambda: d.status()["guest"]["state"] == "idle")
    assert log.read_text() == f"virsh --quiet domfsfreeze {t.vm}\n", log.read_text()
    t.path("off").unlink()
    hook(hooks, "60-hangs", "true")
    (hooks / "60-hangs").chmod(0o777)
    s = create(d, "q")
    assert s["consistent"] == "crash" and "others than its owner can write to it" in s["consistent-reason"], s


def test_the_daemon_ends_while_a_hook_runs(t):
    """SIGTERM: a hook that freezes is not waited for, but ended, and thaws."""
    log, hooks = t.path("log"), t.path("hooks")
    hook(hooks, "db", f"echo $1 >>{log}; [ $1 = thaw ] || sleep 100")
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--hook-dir", hooks, "--freeze-timeout", "120")
    with d.qmp() as qmp:
        qmp.send("fleece-snapshot-create", name="s")
        harness.wait_for("it runs", lambda: log.exists() and log.read_text())
        d.process.send_signal(signal.SIGTERM)
        d.wait()
    assert log.read_text() == "freeze\nthaw\n" and "still be frozen" not in d.log(), log.read_text() + d.log()


def test_an_agent_that_has_moved(t):
    """--thaw with another address than the killed daemon's: asked there when the old socket has gone."""
    with Agent(t.path("old.sock")) as old:
        old.hold = {"thaw": threading.Event()}
        d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--guest-agent", old.path)
        with d.qmp() as qmp:
            qmp.send("fleece-snapshot-create", name="s")
            assert old.heard["thaw"].wait(harness.SOON)
            d.kill()
    old.path.unlink()
    with Agent(t.path("new.sock")) as new:
        new.frozen = 3
        failed = t.run(t.program("fleeced"), "--thaw", "--name", t.vm, status=1).stderr
        assert "can't be reached" in failed and "`fleeced --thaw --name" in failed, failed
        t.run(t.program("fleeced"), "--thaw", "--name", t.vm, "--guest-agent", new.path)
        assert new.frozen == 0


def test_a_hook_that_can_not_be_killed(t):
    """It sleeps in the kernel: nobody waits for it, not at SIGTERM; its thaw comes when it has ended, by the next daemon."""
    log, hooks = t.path("log"), t.path("hooks")
    with frozen_kit.file_system(t) as host:
        hook(hooks, "1", f"echo 1 $1 >>{log}")
        hook(hooks, "2", f"echo 2 $1 >>{log}; [ $1 = thaw ] || echo >{host.folder}/file")
        image, options = t.disk("a.raw", 8 * MIB), ["--hook-dir", hooks, "--freeze-timeout", "5"]
        d = t.daemon({"vda": image}, *options)
        host.freeze()
        s = create(d, "s")
        assert s["consistent"] == "crash", s
        harness.wait_for("it is told", lambda: "sleeps in the kernel" in d.status()["guest"].get("reason", ""))
        assert log.read_text() == "1 freeze\n2 freeze\n1 thaw\n", log.read_text()
        d.process.send_signal(signal.SIGTERM)
        assert d.process.wait(harness.SOON) == 0
        d.ended = True
        assert "the guest may still be frozen" in d.log() and "sleeps in the kernel" in d.log(), d.log()
        d = t.daemon({"vda": image}, *options)
        harness.wait_for("it waits for it", lambda: "sleeps in the kernel" in d.status()["guest"].get("reason", ""))
        assert "2 thaw" not in log.read_text(), log.read_text()
        host.thaw()
        harness.wait_for("it has thawed", lambda: d.status()["guest"]["state"] == "idle")
        assert log.read_text().count("2 thaw") == 1, log.read_text()
        assert create(d, "t")["consistent"] == "hooks"


def test_a_cut_that_is_stuck(t):
    """A write hangs in the disk, so no cut can be made. The watchdog thaws, and so does the death of the client, or of the
    daemon, whose next start does it."""
    with frozen_kit.file_system(t) as host, Agent(t.path("agent.sock")) as agent:
        image = host.folder / "a.raw"
        image.write_bytes(bytes(8 * MIB))
        os.sync()

        def stuck(timeout):
            """A daemon with a write that hangs."""
            d = t.daemon({"vda": image}, "--guest-agent", agent.path, "--freeze-timeout", timeout)
            client = nbd.NBD()
            client.connect_uri(d.uri("vda"))
            host.freeze()
            client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 4096)), 0)
            client.poll(100)
            agent.heard["freeze"].clear()
            return d, client

        d, client = stuck("5")
        with d.qmp() as qmp, d.qmp() as other:
            qmp.send("fleece-snapshot-create", name="s", **{"drain-timeout-ms": 100})
            harness.wait_for("the watchdog has thawed it", lambda: agent.frozen_for)
            assert agent.frozen == 0
            other.send("fleece-snapshot-create", name="r", consistency="required", **{"drain-timeout-ms": 100})
            host.thaw()
            s = qmp.receive()
            assert s["consistent"] == "crash" and "thawed before the cut" in s["consistent-reason"], s
            assert other.receive()["consistent"] == "guest-agent"  # its turn came when nothing was stuck any more
        client.shutdown()
        d.stop()

        d, client = stuck("60")
        with d.qmp() as qmp:
            qmp.send("fleece-snapshot-create", name="s", lease=True)
            harness.wait_for("it is frozen", lambda: d.status()["guest"]["state"] == "frozen")
        harness.wait_for("it has thawed", lambda: agent.frozen == 0)
        host.thaw()
        client.shutdown()
        d.stop()

        d, client = stuck("60")
        with d.qmp() as qmp:
            qmp.send("fleece-snapshot-create", name="s")
            harness.wait_for("it is frozen", lambda: d.status()["guest"]["state"] == "frozen")
            d.process.kill()
            host.thaw()
            d.kill()
        assert agent.frozen == 3
        d = t.daemon({"vda": image})
        harness.wait_for("it has thawed", lambda: agent.frozen == 0)
        d.stop()


def test_options(t):
    """What is not right is said; without anybody who can freeze, nothing can be required."""
    image = t.disk("a.raw", 8 * MIB)
    for options, says in ((["--freeze-timeout", "5"], "goes with --guest-agent or --hook-dir"),
                          (["--guest-agent", "x", "--freeze-timeout", "0"], "seconds, from 0.1 to 600"),
                          (["--guest-agent", "/" + "x" * 108], "longer than 107 bytes"),
                          (["--hook-dir", "a\nb"], "line break")):
        done = t.run(t.program("fleeced"), "--name", t.vm, "--disk", f"vda={image}", *options, status=2)
        assert says in done.stderr, done.stderr
    config = t.path("web1.conf")
    config.write_text(f"guest-agent = {t.path('none.sock')}\nhook-dir = {t.path('none')}\nfreeze-timeout = 3\n")
    d = t.daemon({"vda": image}, "--config", config)
    assert d.status()["guest"]["freeze-timeout-ms"] == 3000
    assert "can't be read" in create(d, "s")["consistent-reason"]
    d.stop()
    d = t.daemon({"vda": image})
    assert d.status()["guest"] is None and create(d, "s")["consistent"] == "crash"
    assert "--guest-agent and --hook-dir" in create(d, "t", "--consistency", "required", status=1)
    assert "auto, crash or required" in create(d, "t", "--consistency", "maybe", status=2)
    assert "already served by process" in t.run(t.program("fleeced"), "--thaw", "--name", t.vm, status=1).stderr


def arrives(t, agent, d):
    """The VMM of the new host starts the rings of the disk."""
    harness.wait_for("the daemon awaits the VM", lambda: "is awaited" in d.log())
    assert agent.said == [], agent.said
    t.run(t.program("tests/vhost/vhost_client"), "model", t.path("vda.v"), "--size", "1m", "--requests", "20")
    d.wait_ready()


def test_a_guest_that_arrives_frozen(t):
    """It stopped on another host while it was frozen for a cut there: nobody but the daemon of its new host can thaw it."""
    for frozen in (3, 0):
        with served(t, "--vhost-user", f"vda={t.path('vda.v')}", "--incoming", "on", wait=False) as (d, agent):
            agent.frozen = frozen
            arrives(t, agent, d)
            last = "thaw" if frozen else "status"
            harness.wait_for("the guest was asked", lambda: agent.said and agent.said[-1] == last and agent.frozen == 0)
            assert ("the guest has arrived frozen" in d.log()) == bool(frozen)
            assert create(d, "s")["consistent"] == "guest-agent"
            d.fleece("snapshot", "delete", "s")
            d.stop()
        t.path("agent.sock").unlink()


def test_a_guest_that_arrives_and_says_nothing(t):
    """An agent that does not answer keeps no daemon from ending."""
    with served(t, "--vhost-user", f"vda={t.path('vda.v')}", "--incoming", "on", wait=False) as (d, agent):
        agent.deaf.set()
        arrives(t, agent, d)
        harness.wait_for("the guest is asked", lambda: agent.said)
        d.stop()
        agent.deaf.clear()


harness.main()
