#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pushes: backups that the daemon makes itself, as jobs, to files and NBD servers, with QEMU's commands and events."""
import json
import signal
import subprocess

import nbd

import harness

KIB, MIB = 1 << 10, 1 << 20
STAMP = "tests/tools/stamp"


def server(t, *options, size="64M", name="target.sock"):
    """nbdkit with some memory; its URI and its process."""
    harness.need("nbdkit")
    socket = t.path(name)
    plugin = [o for o in options if not o.startswith("-")]
    flags = [o for o in options if o.startswith("-")]
    process = t.spawn_server("nbdkit", "-f", "-U", socket, *flags, "memory", size, *plugin, stderr=subprocess.DEVNULL)
    return f"nbd+unix:///?socket={socket}", process


def end(process):
    process.kill()
    process.wait()


def events_until_null(q, job):
    """The story of a job: its states and events in order."""
    story = []
    while True:
        for event in q.events:
            data = event["data"]
            if event["event"] == "JOB_STATUS_CHANGE" and data["id"] == job:
                story.append(data["status"])
            elif event["event"].startswith("BLOCK_JOB") and data.get("device", data.get("id")) == job:
                story.append((event["event"], data))
        q.events.clear()
        if story and story[-1] == "null":
            return story
        q.events.append(q._receive())  # pylint: disable=protected-access


def names(story):
    return [step if isinstance(step, str) else step[0] for step in story]


def without_pauses(story):
    """QEMU pauses jobs for moments of its own."""
    found = []
    for step in story:
        if found and found[-1] == "paused" and step == "running":
            found.pop()
        else:
            found.append(step)
    return found


def content(t, uri, path):
    t.run("nbdcopy", uri, path)
    return path.read_bytes()


def nothing_left(d):
    """No job, no snapshot, no filter, no memory."""
    with d.qmp() as q:
        assert q.execute("query-jobs") == [] and q.execute("query-block-jobs") == []
    status = d.status()
    assert status["snapshots"] == [] and status["cache"]["bytes"] == 0, status
    assert not any(disk["copy-before-write"] for disk in status["disks"])


def test_two_disks_at_one_instant_while_they_are_written_to(t):
    a, b = t.disk("a.raw", 32 * MIB + 512, 1), t.disk("b.raw", 8 * MIB, harness.pattern(5000, 2))
    d = t.daemon({"vda": a, "vdb": b})
    uri, target = server(t, size="8M")
    writer = t.spawn(t.program(STAMP), "write", d.uri("vda"), d.uri("vdb"), "--log", t.path("log"), "--writers", "2",
                     "--region", "1M:6M", stdout=open(t.path("said"), "wb"), stderr=-2)
    harness.wait_for("the writers write", lambda: d.status()["disks"][1]["writes"] > 200)
    for number in range(3):
        image = t.path(f"a.{number}")
        before = t.run(t.program(STAMP), "now").stdout.strip()
        d.fleece("push", "--to", f"vda={image}", "--to", f"vdb={uri}", "--speed", "40M")
        after = t.run(t.program(STAMP), "now").stdout.strip()
        content(t, uri, t.path(f"b.{number}"))
        t.run(t.program(STAMP), "check", image, t.path(f"b.{number}"), "--log", t.path("log"), "--before", before,
              "--after", after)
        assert image.stat().st_size == 32 * MIB + 512
    writer.terminate()
    assert writer.wait(harness.SOON) == 0, t.path("said").read_text()
    nothing_left(d)
    d.stop()
    end(target)


def test_new_files_are_sparse_and_files_that_exist_are_kept(t):
    disk = t.disk("a.raw", 64 * MIB, harness.pattern(100000, 3))
    d = t.daemon({"vda": disk})
    image = t.path("new.raw")
    out = d.fleece("--json", "push", "--to", "vda=new.raw", cwd=t.dir).stdout.splitlines()  # meant from where it runs
    assert json.loads(out[-1])["event"] == "done" and image.read_bytes() == disk.read_bytes()
    assert harness.data_of(image) <= 256 * KIB
    image.write_bytes(b"mine" * 4 * MIB * 4)
    said = d.fleece("push", "--to", f"vda={image}", status=1).stderr
    assert "exists already" in said and image.read_bytes()[:4] == b"mine", said
    d.fleece("push", "--to", f"vda={image}", "--force")
    assert image.read_bytes() == disk.read_bytes()
    t.path("small").write_bytes(b"mine")
    for where, why in (("small", "has 4 bytes, but the disk has"), ("no/such", "no such folder"),
                       (str(disk), "exists already"), ("ftp://x/y", "neither a file nor an NBD URI"),
                       ("nbd+unix:///?socket=/no/such", "can't connect")):
        force = ["--force"] if where == "small" else []
        said = d.fleece("push", "--to", f"vda={where}", *force, status=1, cwd=t.dir).stderr
        assert why in said, said
    said = d.fleece("push", "--to", f"vda={disk}", "--force", status=1).stderr  # the disk itself
    assert "lock" in said, said
    assert t.path("small").read_bytes() == b"mine" and not t.path("no").exists()
    for arguments in (["--to", "vda"], [], ["--to", "vda=x", "--speed", "quick"], ["--to", "vda=x", "y"]):
        d.fleece("push", *arguments, status=2)
    for to in (["vdz=/tmp/x"], ["vda=/tmp/x", "vda=/tmp/y"]):
        said = d.fleece("push", *[a for where in to for a in ("--to", where)], status=1).stderr
        assert "no disk 'vdz'" in said or "two targets" in said, said
    nothing_left(d)
    d.stop()


def qemu_story(t, disk, target, act):
    """What qemu-storage-daemon tells of the same job."""
    control = t.path("qsd.sock")
    storage = t.spawn_server("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=vda,filename={disk}",
                             "--blockdev", f"driver=file,node-name=t,filename={target}",
                             "--chardev", f"socket,path={control},server=on,wait=off,id=c", "--monitor", "chardev=c")
    with harness.Qmp(control) as q:
        story = act(q, "t")
    end(storage)
    control.unlink()
    return story


def run_to_the_end(q, target):
    q.execute("blockdev-backup", job_id="j", device="vda", target=target, sync="full")
    return events_until_null(q, "j")


def finalize_by_hand(q, target):
    q.execute("blockdev-backup", job_id="j", device="vda", target=target, sync="full", auto_finalize=False,
              auto_dismiss=False)
    q.event("BLOCK_JOB_PENDING")
    shown, = q.execute("query-jobs")
    assert (shown["id"], shown["type"], shown["status"]) == ("j", "backup", "pending"), shown
    q.execute("job-finalize", id="j")
    harness.wait_for("it has concluded", lambda: q.execute("query-jobs")[0]["status"] == "concluded")
    q.execute("job-dismiss", id="j")
    return events_until_null(q, "j")


def cancel_it(q, target):
    q.execute("blockdev-backup", job_id="j", device="vda", target=target, sync="full", speed=1 * MIB)
    q.execute("job-cancel", id="j")
    return events_until_null(q, "j")


def pause_then_cancel(q, target):
    q.execute("blockdev-backup", job_id="j", device="vda", target=target, sync="full", speed=1 * MIB)
    q.execute("job-pause", id="j")
    harness.wait_for("it pauses", lambda: q.execute("query-jobs")[0]["status"] == "paused")
    q.execute("block-job-set-speed", device="j", speed=2 * MIB)
    q.execute("job-resume", id="j")
    q.execute("block-job-cancel", device="j")
    return events_until_null(q, "j")


def wrong_verbs(q, target):
    said = []
    q.execute("blockdev-backup", job_id="j", device="vda", target=target, sync="full", speed=1 * MIB)
    for command, arguments in (("job-finalize", {"id": "j"}), ("job-dismiss", {"id": "j"}), ("job-resume", {"id": "j"}),
                               ("job-cancel", {"id": "k"}), ("block-job-cancel", {"device": "k"}),
                               ("block-job-set-speed", {"device": "k", "speed": 1})):
        try:
            q.execute(command, **arguments)
            said.append(None)
        except harness.QmpError as error:
            said.append((error.kind, error.text))
    q.execute("job-cancel", id="j")
    return said + events_until_null(q, "j")


def test_commands_and_events_are_those_of_qemu(t):
    harness.need("qemu-storage-daemon")
    disk = t.disk("a.raw", 16 * MIB, 1)
    d = t.daemon({"vda": disk})
    for number, act in enumerate((run_to_the_end, finalize_by_hand, cancel_it, pause_then_cancel, wrong_verbs)):
        with d.qmp() as q:
            ours = act(q, str(t.path(f"o{number}")))
        theirs = qemu_story(t, t.disk("peer.raw", 16 * MIB, 1), t.disk(f"p{number}", 16 * MIB), act)
        if act is pause_then_cancel:
            assert "paused" in names(ours)
        ours, theirs = without_pauses(ours), without_pauses(theirs)
        assert names(ours) == names(theirs), f"{act.__name__}: ours\n{ours}\ntheirs\n{theirs}"
        for mine, yours in zip(ours, theirs):
            if isinstance(mine, tuple) and isinstance(mine[1], dict):
                assert mine[1].keys() == yours[1].keys() and mine[1]["len"] == yours[1]["len"], (mine, yours)
            else:
                assert mine == yours, (mine, yours)
        assert t.path(f"o{number}").exists() == (act in (run_to_the_end, finalize_by_hand))
        nothing_left(d)
    assert t.path("o0").read_bytes() == disk.read_bytes()
    d.stop()


def test_what_cannot_be_honoured_is_refused(t):
    d = t.daemon({"vda": t.disk("a.raw", MIB, 1)})
    with d.qmp() as q:
        for arguments, why in ((dict(sync="incremental", bitmap="b"), "does not clear its bitmap"),
                               (dict(sync="incremental"), "does not clear its bitmap"),
                               (dict(sync="bitmap", bitmap="b", bitmap_mode="always"), "does not clear its bitmap"),
                               (dict(sync="bitmap", bitmap="b", bitmap_mode="on-success"), "bitmap-mode 'never'"),
                               (dict(sync="bitmap", bitmap="b", bitmap_mode="perhaps"), "must be 'never', not 'perhaps'"),
                               (dict(sync="bitmap", bitmap_mode="never"), "'bitmap' is missing"),
                               (dict(sync="bitmap", bitmap="b", bitmap_mode="never", force=True), "does not exist"),
                               (dict(sync="full", bitmap_mode="never"), "go with sync 'bitmap'"),
                               (dict(sync="top", bitmap="b"), "'full' or 'bitmap'"),
                               (dict(sync="sideways"), "must be 'full' or 'bitmap', not 'sideways'"),
                               (dict(sync="bitmap"), "'bitmap' is missing"), (dict(sync="none"), "fleece-snapshot-create"),
                               (dict(sync="top"), "'full' or 'bitmap'"), (dict(sync="full", compress=True), "raw"),
                               (dict(sync="full", bitmap="b"), "go with sync 'bitmap'"),
                               (dict(sync="full", on_target_error="stop"), "must be 'report'"),
                               (dict(sync="full", target="here.raw"), "absolute path"),
                               (dict(sync="full", device="vdq"), "no disk 'vdq'"),
                               (dict(sync="full", job_id="a/b"), "job id"), (dict(sync="full", speed=-1), "'speed'")):
            try:
                q.execute("blockdev-backup", **dict(dict(device="vda", target=str(t.path("o"))), **arguments))
                raise AssertionError(f"{arguments} was taken")
            except harness.QmpError as error:
                assert why in error.text, error.text
        for targets in ([], [1], [{"disk": "vda"}], [{"disk": "vda", "target": "/x", "more": 1}]):
            try:
                q.execute("fleece-push", targets=targets)
                raise AssertionError(f"{targets} was taken")
            except harness.QmpError:
                pass
    assert not t.path("o").exists()
    nothing_left(d)
    d.stop()


def push_in_the_background(t, d, *arguments):
    process = t.spawn(t.program("fleece"), "--control", d.control, "push", *arguments, stdout=subprocess.DEVNULL,
                      stderr=subprocess.PIPE)
    harness.wait_for("the job runs", lambda: jobs(d))
    return process


def set_speed(d, job, speed):
    with d.qmp() as q:
        q.execute("block-job-set-speed", device=job, speed=speed)


def jobs(d):
    with d.qmp() as q:
        return q.execute("query-block-jobs")


def test_interrupted_and_killed_clients(t):
    disk = t.disk("a.raw", 16 * MIB, 1)
    d = t.daemon({"vda": disk})
    image = t.path("o.raw")
    push = push_in_the_background(t, d, "--to", f"vda={image}", "--speed", "1M")
    push.send_signal(signal.SIGINT)
    said = push.communicate(timeout=harness.SOON)[1].decode()
    assert push.returncode == 130 and "cancelled" in said, said
    harness.wait_for("the job is gone", lambda: not jobs(d))
    assert not image.exists()
    push = push_in_the_background(t, d, "--to", f"vda={image}", "--speed", "1M")
    push.kill()
    push.wait()
    shown, = jobs(d)
    assert shown["type"] == "backup" and shown["speed"] == MIB and shown["len"] == 16 * MIB, shown
    set_speed(d, shown["device"], 0)
    harness.wait_for("the daemon ends the job by itself", lambda: not jobs(d))
    assert image.read_bytes() == disk.read_bytes()
    push = push_in_the_background(t, d, "--to", f"vda={t.path('p.raw')}", "--speed", "1M")
    d.stop()  # the job goes with the daemon
    assert push.wait(harness.SOON) == 1 and not t.path("p.raw").exists()


def test_its_snapshot_is_deleted(t):
    """By somebody else, in each mode, also while the job is paused: the job fails and says so."""
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB, 1)})
    for mode in ("both", "ram", "plain"):
        for pause in (False, True):
            with d.qmp() as q:
                q.execute("fleece-push", targets=[{"disk": "vda", "target": str(t.path("o"))}], job_id="j", mode=mode,
                          speed=1 * MIB)
                if pause:
                    q.execute("job-pause", id="j")
                assert [e["name"] for e in q.execute("query-block-exports")] == ["vda"]  # nobody else reads it
                q.execute("fleece-snapshot-delete", name="j")
                story = events_until_null(q, "j")
                error = [step[1].get("error") for step in story if step[0] == "BLOCK_JOB_COMPLETED"]
                assert error == ["the snapshot of job 'j' was deleted"], story
            assert not t.path("o").exists()
            nothing_left(d)
    d.stop()


def test_what_is_copied_is_preserved_no_more(t):
    """A guest that writes where the copy has been: N25, P18."""
    disk = t.disk("a.raw", 32 * MIB, 1)
    preserved = {}
    for switch in ("release", "no-release"):
        d = t.daemon({"vda": disk})
        guest = nbd.NBD()
        guest.connect_uri(d.uri("vda"))
        right = disk.read_bytes()
        arguments = ["--no-release"] if switch != "release" else []
        push = push_in_the_background(t, d, "--to", f"vda={t.path(switch)}", "--speed", "6M", *arguments)
        harness.wait_for("4 MiB have been copied and are safe", lambda: jobs(d)[0]["offset"] >= 8 * MIB and (
            arguments or d.status()["disks"][0]["blocks-released"] >= 4 * MIB // 4096))
        set_speed(d, jobs(d)[0]["device"], 64 * KIB)  # however slow the guest is, there is something left to copy
        for number in range(100):
            guest.pwrite(harness.pattern(4096, number), number * 16 * KIB)
        preserved[switch] = d.status()["disks"][0]["blocks-preserved"]
        assert push.poll() is None, "the copy was too quick"
        set_speed(d, jobs(d)[0]["device"], 0)
        assert push.wait(harness.SOON) == 0, push.stderr.read()
        assert t.path(switch).read_bytes() == right
        guest.shutdown()
        nothing_left(d)
        d.stop()
    assert preserved == {"release": 0, "no-release": 100}, preserved


def dirty_ranges(q):
    return q.execute("fleece-query-dirty-ranges", node="vda", name="b")["ranges"]


def test_a_bitmap_is_not_used_up(t):
    """bitmap-mode never: what it holds it holds after a job that failed, one that was cancelled and one that ended well; and
    what the guest writes meanwhile is added."""
    disk, image = t.disk("a.raw", 8 * MIB, 1), t.disk("o.raw", 8 * MIB, 1)
    bad, uri = server(t, "--filter=error", "error-pwrite=EIO", "error-pwrite-rate=100%", size="8M")[::-1]
    d = t.daemon({"vda": disk})
    guest = nbd.NBD()
    guest.connect_uri(d.uri("vda"))
    job = {"device": "vda", "sync": "bitmap", "bitmap": "b", "bitmap_mode": "never", "job_id": "j"}
    with d.qmp() as q:
        q.execute("block-dirty-bitmap-add", node="vda", name="b", granularity=4096)
        for number in range(16):
            guest.pwrite(harness.pattern(4096, f"x{number}"), number * 512 * KIB)
        held = dirty_ranges(q)
        assert len(held) == 16, held
        q.execute("blockdev-backup", target=uri, **job)
        ended = [step[1] for step in events_until_null(q, "j") if step[0] == "BLOCK_JOB_COMPLETED"]
        assert "Input/output error" in ended[0]["error"] and dirty_ranges(q) == held, ended
        q.execute("blockdev-backup", target=str(image), speed=1, **job)
        q.execute("job-cancel", id="j")
        assert "BLOCK_JOB_CANCELLED" in names(events_until_null(q, "j")) and dirty_ranges(q) == held
        right = disk.read_bytes()
        q.execute("blockdev-backup", target=str(image), speed=1, **job)
        guest.pwrite(b"later" * 4096, 256 * KIB)
        q.execute("block-job-set-speed", device="j", speed=0)
        assert "BLOCK_JOB_COMPLETED" in names(events_until_null(q, "j"))
        assert dirty_ranges(q) == held[:1] + [{"offset": 256 * KIB, "length": 20 * KIB}] + held[1:]
    assert image.read_bytes() == right
    guest.shutdown()
    nothing_left(d)
    d.stop()
    end(bad)


def test_only_what_changed_travels(t):
    """sync=bitmap onto the last backup: only the blocks that are set in the bitmap are read and written (L30)."""
    disk, image = t.disk("a.raw", 32 * MIB, 1), t.path("o.raw")
    d = t.daemon({"vda": disk})
    guest = nbd.NBD()
    guest.connect_uri(d.uri("vda"))
    with d.qmp() as q:
        q.execute("block-dirty-bitmap-add", node="vda", name="b", granularity=4096)
        d.fleece("push", "--to", f"vda={image}")
        assert image.read_bytes() == disk.read_bytes()
        for number in range(50):
            guest.pwrite(harness.pattern(4096, f"x{number}"), number * 640 * KIB)
        guest.flush()
        q.execute("blockdev-backup", job_id="i", device="vda", target=str(image), sync="bitmap", bitmap="b",
                  bitmap_mode="never")
        wait_null = events_until_null(q, "i")
        assert "BLOCK_JOB_COMPLETED" in names(wait_null), wait_null
    assert image.read_bytes() == disk.read_bytes()
    with open(image, "r+b") as f:  # where nothing changed the target keeps what it has
        f.seek(4096)
        f.write(b"kept")
    d.fleece("push", "--to", f"vda={image}", "--bitmap", "b")
    now = bytearray(disk.read_bytes())
    now[4096:4100] = b"kept"
    assert image.read_bytes() == now
    said = d.fleece("push", "--to", f"vda={t.path('new.raw')}", "--bitmap", "b", status=1).stderr
    assert "does not exist" in said, said
    assert "'none'" in d.fleece("push", "--to", f"vda={image}", "--bitmap", "none", status=1).stderr
    guest.shutdown()
    nothing_left(d)
    d.stop()


harness.main()
