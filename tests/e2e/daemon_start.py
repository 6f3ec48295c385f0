#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How fleeced starts, refuses to start, and ends: sentences, exit codes, what is left."""
import fcntl
import os
import pathlib
import signal
import socket
import stat
import time

import harness

MIB = 1 << 20


def runtime(t):
    return pathlib.Path(f"/run/fleece/{t.vm}") if os.geteuid() == 0 else t.path(f"run/fleece/{t.vm}")


def refuse(t, status, text, *arguments, **options):
    """The daemon must not start: one line on stderr that holds `text`, and this exit code."""
    done = t.run(t.program("fleeced"), *arguments, status=status, **options)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fleeced: ") and text in lines[0], f"{done.stderr!r} lacks {text!r}"
    assert done.stdout == "", done.stdout
    return done


def wait_log(d, text):
    harness.wait_for(f"the log says: {text}", lambda: text in d.log())


def test_usage(t):
    assert "usage: fleeced" in t.run(t.program("fleeced"), "--help").stdout
    assert t.run(t.program("fleeced"), "--version").stdout.startswith("fleeced ")
    refuse(t, 2, "--name is missing")
    refuse(t, 2, "'--colour' is no option", "--colour")
    refuse(t, 2, "format=vmdk is not right: raw or qcow2", "--disk", "vda=x,format=vmdk")
    refuse(t, 2, "--vhost-user 'vda' is not NAME=SOCKET", "--vhost-user", "vda")
    refuse(t, 2, "x.conf can't be opened: No such file", "--config", t.path("x.conf"))
    t.path("x.conf").write_text("name = x\n\ndisk = vda=x,format=vmdk\n")
    refuse(t, 2, f"{t.path('x.conf')}:3: --disk vda: format=vmdk is not right: raw or qcow2", "--config", t.path("x.conf"))
    t.path("x.conf").write_text("name = x\n")
    refuse(t, 2, "--disk is missing", "--config", t.path("x.conf"))
    refuse(t, 2, "track=maybe is not right: off or on", "--disk", "vda=x,track=maybe")


def test_a_file_of_options(t):
    """As the unit fleeced@.service starts it: the name, and the rest in a file."""
    unit = (harness.BUILD / "fleeced@.service").read_text()
    start, = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert start.endswith("/bin/fleeced --name %i --config /etc/fleece/%i.conf"), start
    disk, control = t.disk("a.raw", MIB), t.path("c.sock")
    t.path("vm.conf").write_text(f"# web1\ndisk = vda={disk}\ndisk = vdb=,driver=null,size=1G ; for measurements\n"
                                 f"control = {control}\nfleece = ram=8M,cbw-timeout=1\nnbd = unix:{t.path('n.sock')}\n")
    with open(t.path("log"), "wb") as log:
        process = t.spawn(t.program("fleeced"), "--name", t.vm, "--config", t.path("vm.conf"), stderr=log)
    harness.wait_for("it is ready", lambda: "ready: VM" in t.path("log").read_text())
    said = t.fleece("--control", control, "status").stdout
    assert "vda" in said and "vdb" in said and "8 MiB at most" in said and str(t.path("n.sock")) in said, said
    process.terminate()
    assert process.wait(harness.SOON) == 0
    assert not control.exists()


def test_disks_that_cannot_be_served(t):
    def wrong(text, path, *options, **more):
        refuse(t, 1, text, "--name", t.vm, "--disk", f"vda={path}", *options, **more)
        assert not runtime(t).exists(), "the run-time folder stayed"

    wrong(f'--disk vda: disk "{t.path("missing")}": no such file', t.path("missing"))
    wrong(f'"{t.dir}" is a directory', t.dir)
    wrong(f'"{t.path("empty")}" has size 0', t.disk("empty", 0))
    os.mkfifo(t.path("pipe"))
    wrong(f'"{t.path("pipe")}"', t.path("pipe"))
    wrong('"/dev/null"', "/dev/null")
    secret = t.disk("secret", MIB)
    if os.geteuid():
        secret.chmod(0)
        wrong("Permission denied", secret)
    else:
        # As somebody who may not read it; with a run-time folder of his own.
        home = t.path("nobody")
        home.mkdir()
        os.chown(home, 65534, 65534)
        t.dir.chmod(0o755)
        secret.chmod(0o600)
        wrong("Permission denied", secret, user=65534, group=65534, extra_groups=[],
              env=dict(t.environment, XDG_RUNTIME_DIR=str(home)))
    good = t.disk("good", MIB)
    os.link(good, t.path("other-name"))  # refused at once, not after the time that locks are waited for
    wrong(f'--disk vdb: "{t.path("other-name")}" is the image of disk vda as well', good,
          "--disk", f"vdb={t.path('other-name')}", "--lock-timeout", "3600")
    wrong(f"--state-dir {t.path('nowhere')}: No such file", good, "--state-dir", t.path("nowhere"))
    wrong("it is not a directory", good, "--state-dir", good)


def test_addresses_that_cannot_be_had(t):
    disk = t.disk("a.raw", MIB)

    def wrong(text, *options, **more):
        refuse(t, 1, text, "--name", t.vm, "--disk", f"vda={disk}", *options, **more)
        assert not runtime(t).exists(), "the run-time folder stayed"

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong(f'--nbd: address "tcp:127.0.0.1:{port}": port {port} is in use', "--nbd", f"tcp:127.0.0.1:{port}")
    wrong("loopback", "--nbd", f"tcp:0.0.0.0:{harness.free_port()}")
    wrong("the limit is 107", "--nbd", f"unix:{t.dir}/{'x' * 120}")
    wrong("the limit is 107", "--control", f"{t.dir}/{'x' * 120}")
    wrong("No such file or directory", "--nbd", f"unix:{t.dir}/nowhere/s")
    wrong("No such file or directory", "--control", f"{t.dir}/nowhere/s")
    precious = t.path("precious")
    precious.write_text("a user's own file")
    wrong(str(precious), "--nbd", f"unix:{precious}")
    wrong(str(precious), "--control", precious)
    assert precious.read_text() == "a user's own file"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(t.path("live")))
        live.listen()
        wrong("in use", "--nbd", f"unix:{t.path('live')}")
        wrong("in use", "--control", t.path("live"))
        assert t.path("live").exists()
    # The addresses that could be had were given back.
    nbd = t.path("n.sock")
    wrong("in the way", "--nbd", f"unix:{nbd}", "--control", precious)
    assert not nbd.exists()


def test_default_places(t):
    process = t.spawn(t.program("fleeced"), "--name", t.vm, "--disk", f"vda={t.disk('a.raw', MIB)}",
                      stderr=open(t.path("log"), "wb"))
    harness.wait_for("it is ready", lambda: "ready" in t.path("log").read_text())
    folder = runtime(t)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("control.sock", "nbd.sock"):
        assert stat.S_ISSOCK((folder / name).stat().st_mode) and stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert str(folder / name) in t.path("log").read_text()
    status = t.fleece("--vm", t.vm, "status").stdout
    assert f"VM {t.vm}" in status and str(folder / "nbd.sock") in status
    process.terminate()
    assert process.wait(harness.SOON) == 0
    assert not folder.exists()


def test_second_daemon_of_a_vm(t):
    disk, other = t.disk("a.raw", MIB), t.disk("b.raw", MIB)
    d = t.daemon({"vda": disk})
    with d.qmp() as q:
        refuse(t, 1, f"VM {t.vm} is already served by process {d.pid}", "--name", t.vm, "--disk", f"vda={other}")
        refuse(t, 1, f"VM {t.vm} is already served by process {d.pid}", "--name", t.vm, "--disk", f"vda={other}",
               "--control", d.control, "--nbd", d.nbd)
        assert q.execute("query-status")["running"]
        assert d.status()["pid"] == d.pid
        t.run("nbdinfo", d.uri("vda"))
        refuse(t, 1, "in use", "--name", t.vm + "x", "--disk", f"vda={other}", "--control", d.control)
        assert d.status()["pid"] == d.pid
    d.stop()


def test_a_dying_daemon_is_waited_for(t):
    """A killed process that takes long to go holds the lock of the VM for more than the second that is always waited."""
    folder = runtime(t)
    folder.mkdir(parents=True, mode=0o700)
    zombie = t.spawn("true")
    harness.wait_for("it is a zombie", lambda: ") Z " in pathlib.Path(f"/proc/{zombie.pid}/stat").read_text())
    with open(folder / "lock", "w") as lock:
        lock.write(f"fleeced runtime 1\npid {zombie.pid}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        d = t.daemon({"vda": t.disk("a.raw", MIB)}, wait=False)
        time.sleep(2)
        assert d.process.poll() is None and not d.control.exists(), d.log()
        refuse(t, 1, f"already served by process {zombie.pid}", "--name", t.vm, "--disk", "vda=x", "--lock-timeout", "0")
    d.wait_ready()
    d.stop()


def test_daemons_that_end_take_empty_folders_along(t):
    """Those of others, too, in which one that starts has nothing yet."""
    disk, folder = t.disk("a.raw", MIB), runtime(t)
    ends = t.spawn("/usr/bin/python3", "-c", "import os, sys\nwhile True:\n for f in sys.argv[1:]:\n  try: os.rmdir(f)\n"
                   "  except OSError: pass", folder, folder.parent)
    for _ in range(20):
        d = t.daemon({"vda": disk})
        assert (folder / "lock").exists()
        d.stop()
    ends.kill()
    ends.wait()


def test_what_a_killed_daemon_left(t):
    """Its sockets are replaced, wherever they are; a stranger's file under their name is not."""
    disk = t.disk("a.raw", MIB)
    nbd = f"unix:{t.path('n1')}"
    first = t.daemon({"vda": disk}, nbd=nbd)
    first.kill()
    left = runtime(t) / "lock"
    assert left.exists() and first.control.exists() and t.path("n1").exists()
    # The next one uses other places: the old sockets go all the same.
    second = t.daemon({"vda": disk})
    assert not first.control.exists() and not t.path("n1").exists()
    second.kill()
    t.path("nbd1.sock").unlink()
    t.path("nbd1.sock").write_text("a user's own file")
    third = t.daemon({"vda": disk})
    assert t.path("nbd1.sock").read_text() == "a user's own file"
    third.stop()
    # A file `lock` that is not ours is left alone.
    runtime(t).mkdir(parents=True, mode=0o700)
    left.write_text("something else")
    refuse(t, 1, f"{left} is not a file of fleeced", "--name", t.vm, "--disk", f"vda={disk}")
    assert left.read_text() == "something else"
    left.unlink()
    runtime(t).chmod(0o755)
    refuse(t, 1, "must be ours alone", "--name", t.vm, "--disk", f"vda={disk}")
    runtime(t).rmdir()


def test_signals(t):
    disks = {f"d{i}": t.disk(f"{i}.raw", MIB) for i in range(3)}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        d = t.daemon(disks)
        client = socket.socket(socket.AF_UNIX)
        client.connect(d.nbd[5:])  # an NBD connection in its handshake, and a snapshot
        d.fleece("snapshot", "create")
        d.process.send_signal(number)
        d.wait(0)
        assert client.recv(4096) is not None
        client.close()
        t.daemons.clear()


def test_the_lock_of_a_disk_is_waited_for(t):
    disk = t.disk("a.raw", MIB)
    holder = t.daemon({"vda": disk})
    t.vm += "x"  # another VM that wants the same disk
    d = t.daemon({"vda": disk}, "--lock-timeout", "25", wait=False)
    wait_log(d, f"waiting up to 25 s for the lock on {disk}")
    assert runtime(t).exists()
    d.process.send_signal(signal.SIGINT)
    d.wait(130)
    assert not runtime(t).exists() and not d.control.exists()
    refuse(t, 1, str(disk), "--name", t.vm, "--disk", f"vda={disk}", "--lock-timeout", "0")
    assert not runtime(t).exists()
    d = t.daemon({"vda": disk}, "--lock-timeout", "25", wait=False)
    wait_log(d, "waiting up to 25 s")
    holder.kill()
    d.wait_ready()
    d.process.terminate()
    assert d.process.wait(harness.SOON) == 0
    d.ended = True
    t.vm = t.vm[:-1]
    t.daemon({"vda": disk}).stop()  # clears away what the killed one left


def test_service_manager_is_told(t):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(t.path("notify")))
        manager.settimeout(harness.SOON)
        d = t.daemon({"vda": t.disk("a.raw", MIB)}, env={"NOTIFY_SOCKET": str(t.path("notify"))})
        assert manager.recv(100) == b"READY=1"
        d.stop()
        assert manager.recv(100) == b"STOPPING=1"


def test_the_journal_gets_priorities(t):
    """Lines begin with a priority when stderr is the journal, and not when a service merely started us."""
    arguments = (t.program("fleeced"), "--name", t.vm, "--disk", f"vda={t.path('missing')}")
    with open(t.path("log"), "wb") as log:
        st = os.fstat(log.fileno())
        environment = dict(t.environment, JOURNAL_STREAM=f"{st.st_dev}:{st.st_ino}")
        assert t.spawn(*arguments, stderr=log, env=environment).wait(harness.SOON) == 1
    assert t.path("log").read_text().startswith("<3>--disk vda: "), t.path("log").read_text()
    refuse(t, 1, "--disk vda: ", *arguments[1:], env=environment)


def test_disks_are_spread(t):
    disks = {f"d{i}": t.disk(f"{i}.raw", MIB) for i in range(3)}
    d = t.daemon(disks, "--io-threads", "2")
    assert len(d.status()["reactors"]) == 2
    threads = [(p / "comm").read_text().strip() for p in pathlib.Path(f"/proc/{d.pid}/task").iterdir()]
    assert sorted(n for n in threads if n.startswith("fleece-io")) == ["fleece-io-0", "fleece-io-1"], threads
    t.run("nbdcopy", d.uri("d2"), t.path("copy"))
    d.stop()
    d = t.daemon(disks)
    assert len(d.status()["reactors"]) == min(3, len(os.sched_getaffinity(0)))
    d.stop()


def test_descriptor_limit(t):
    """The soft limit of old is raised."""
    d = t.daemon({"vda": t.disk("a.raw", MIB)}, wrapper=["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh"])
    limits = pathlib.Path(f"/proc/{d.pid}/limits").read_text()
    soft, hard = [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")][0]
    assert soft == hard, limits


harness.main()
