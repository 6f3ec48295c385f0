#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The client `fleece`: what it prints, its sentences and exit codes."""
import json
import os
import re
import socket
import threading

import harness

MIB = 1 << 20


def wrong(t, status, text, *arguments):
    done = t.fleece(*arguments, status=status)
    first = done.stderr.splitlines()[0]
    assert first.startswith("fleece: ") and text in first, f"{done.stderr!r} lacks {text!r}"
    assert done.stdout == "", done.stdout
    assert len(done.stderr.splitlines()) == (2 if status == 2 else 1), done.stderr


def test_usage(t):
    said = t.fleece("--help").stdout
    assert "status" in said and "snapshot" in said and "qmp" in said and "130 interrupted" in said
    assert t.fleece("--version").stdout.startswith("fleece ")
    wrong(t, 2, "no command given")
    wrong(t, 2, "unknown command 'stat'", "stat")
    wrong(t, 2, "unknown option --colour", "--colour", "status")
    wrong(t, 2, "option --vm wants a value", "--vm")
    wrong(t, 2, "say which VM is meant: --vm NAME or --control SOCKET", "status")
    wrong(t, 2, "give one of them", "--vm", "a", "--control", "b", "status")
    wrong(t, 2, "VM name 'a/b' is not valid", "--vm", "a/b", "status")
    wrong(t, 2, "status takes no argument: 'now'", "--vm", "a", "status", "now")
    wrong(t, 2, "say what to do: create, list, residence or delete", "--vm", "a", "snapshot")
    wrong(t, 2, "unknown action 'make'", "--vm", "a", "snapshot", "make")
    wrong(t, 2, "snapshot name 'a b' is not valid", "--vm", "a", "snapshot", "create", "a b")
    wrong(t, 2, "snapshot create takes one name, not 2", "--vm", "a", "snapshot", "create", "a", "b")
    wrong(t, 2, "--drain-timeout '31' is not right", "--vm", "a", "snapshot", "create", "--drain-timeout", "31")
    wrong(t, 2, "--drain-timeout 'x' is not right", "--vm", "a", "snapshot", "create", "--drain-timeout", "x")
    wrong(t, 2, "--read-once 'never' is not right", "--vm", "a", "snapshot", "create", "--read-once=never")
    longest = "/" * 8191  # which no file has, so that it goes as far as the daemon that isn't there
    wrong(t, 1, "no daemon", "--vm", t.vm, "push", "--to", f"vda={longest}")
    wrong(t, 2, "--to: the target of disk vda has 8192 bytes; 8191 are right", "--vm", "a", "push", "--to",
          f"vda={longest}x")
    wrong(t, 2, f"has {len(os.getcwd()) + 8192} bytes; 8191", "--vm", "a", "push", "--to", f"vda={'x' * 8191}")
    wrong(t, 2, "wants the name of a snapshot and the name of a disk", "--vm", "a", "snapshot", "residence", "x")
    wrong(t, 2, "unknown option --fast", "--vm", "a", "snapshot", "create", "--fast")
    wrong(t, 2, "wants the name of one snapshot", "--vm", "a", "snapshot", "delete")
    wrong(t, 2, "snapshot list takes no argument", "--vm", "a", "snapshot", "list", "x")
    wrong(t, 2, "qmp wants one command in JSON", "--vm", "a", "qmp")
    wrong(t, 2, "'nonsense' is not a command", "--vm", "a", "qmp", "nonsense")
    wrong(t, 2, "it is not a JSON object", "--vm", "a", "qmp", "[]")
    wrong(t, 2, '"execute" must be the name of a command', "--vm", "a", "qmp", "{}")
    wrong(t, 2, '"arguments" must be a JSON object', "--vm", "a", "qmp", '{"execute":"quit","arguments":1}')


def test_options_of_sets(t):
    """What contradicts, has no effect or can't be meant is refused before anything is done."""
    where = t.path("set")
    for text, *arguments in (
            ("--control is empty", "--control", "", "status"),
            ("option --json stands before the command", "verify", where, "--json"),
            ("option --vm stands before the command", "--control", "x", "backup", where, "--vm", "a"),
            ("option --full takes no value", "--vm", "a", "backup", where, "--full=yes"),
            ("option --dry-run takes no value", "prune", where, "--dry-run=no"),
            ("--full and --since exclude one another", "--vm", "a", "backup", where, "--full", "--since", "x"),
            ("--since: checkpoint name '' is not valid", "--vm", "a", "backup", where, "--since", ""),
            ("--compress is for qcow2 images", "--vm", "a", "backup", where, "--format", "raw", "--compress"),
            ("is a point; backup wants the folder", "--vm", "a", "backup", f"{where}@latest"),
            ("unknown option --nope", "list", where, "--nope"),
            ("list wants one backup set", "list"),
            ("--seed chooses the sample of --sample PERCENT", "verify", where, "--seed", "1"),
            ("--seed chooses the sample of --sample PERCENT", "verify", where, "--sample", "100%", "--seed", "1"),
            ("--sample is '0x10', not a part", "verify", where, "--sample", "0x10"),
            ("--sample is '1e-9', not a part", "verify", where, "--sample", "1e-9"),
            ("is a point; audit wants the folder", "--vm", "a", "audit", f"{where}@latest"),
            ("is a point; prune wants the folder", "prune", f"{where}@latest", "--keep-last", "1"),
            ("--all goes with --to-dir", "restore", where, "--all", "--to", "x"),
            ("wants the UUID of one checkpoint, as 'checkpoint list' shows it: 'monday' is none", "--vm", "a",
             "checkpoint", "commit", "monday"),
            ("--speed '0' is not right", "--vm", "a", "push", "--to", "vda=/x", "--speed", "0"),
            ("--speed 0 is not right", "--vm", "a", "cache", "estimate", "--speed", "0"),
            ("--granularity '3' is not right: a power of 2", "--vm", "a", "bitmap", "add", "--granularity", "3", "b")):
        wrong(t, 2, text, *arguments)
    assert not where.exists()
    for command in re.findall(r"^  ([a-z]+) ?", t.fleece("--help").stdout, re.M):
        said = t.fleece(command, "x", "--help")
        assert said.stdout.startswith(f"usage: fleece [OPTION…] {command}") and said.stderr == "", said


def test_sentences_are_one_line(t):
    """Whatever is in a name; and of a long one the reason is not what is cut off."""
    wrong(t, 1, "there is no backup set at 'a?b??[31m': no such folder", "list", "a\nb\t\x1b[31m")
    long = "/" + "/".join(["x" * 200] * 20)
    wrong(t, 1, "'/xxx", "--vm", "a", "audit", long)
    wrong(t, 1, "xxx': no such folder", "--vm", "a", "audit", long)


def test_tables(t):
    """Long names don't tear columns; a checkpoint's UUID, which commands take, is there to be copied."""
    longest = "v" * 64
    d = t.daemon({"vda": t.disk("a.raw", MIB), longest: t.disk("b.raw", MIB)})
    for name in ("c" * 64, "d"):
        d.fleece("checkpoint", "create", name)
        d.fleece("snapshot", "create", name)
        d.fleece("bitmap", "add", name)
    uuids = [json.loads(line)["uuid"] for line in d.fleece("--json", "checkpoint", "list").stdout.splitlines()]
    for command, column in ((("checkpoint", "list"), "DISK"), (("snapshot", "list"), "STATE"), (("bitmap", "list"), "DISK"),
                            (("status",), "URI")):
        tables = d.fleece(*command).stdout.split("\n\n")
        lines = next(table.strip().splitlines() for table in tables if f" {column}" in table.splitlines()[0])
        at = lines[0].index(column)
        assert len(lines) > 2 and all(line[at - 2:at] == "  " and line[at] != " " for line in lines[1:]), lines
    said = d.fleece("checkpoint", "list").stdout
    assert all(said.count(uuid) == 2 for uuid in uuids), said
    assert d.fleece("checkpoint", "delete", uuids[0]).stdout == f"checkpoint {uuids[0]} deleted\n"


def test_no_daemon(t):
    wrong(t, 1, f"no daemon takes commands at {t.path('none')}: No such file", "--control", t.path("none"), "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(t.path("dead")))
    wrong(t, 1, f"no daemon takes commands at {t.path('dead')}: Connection refused", "--control", t.path("dead"), "status")
    wrong(t, 1, "is too long", "--control", "x" * 200, "status")
    t.path("file").write_text("")
    wrong(t, 1, str(t.path("file")), "--control", t.path("file"), "status")


def server(t, name, *replies):
    """Something else that listens: sends each of the replies after a line was read; returns its path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(t.path(name)))
    listener.listen()

    def serve():
        with listener, listener.accept()[0] as s:
            stream = s.makefile("rb")
            for i, reply in enumerate(replies):
                if i:
                    stream.readline()
                s.sendall(reply)
            stream.close()

    threading.Thread(target=serve, daemon=True).start()
    return t.path(name)


def test_not_a_daemon(t):
    qemu = b'{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0},"package":""},"capabilities":[]}}\r\n'
    ours = qemu.replace(b'"qemu"', b'"fleece"')
    done = b'{"return":{},"id":1}\r\n'
    wrong(t, 1, "is not a Fleece daemon", "--control", server(t, "qemu", qemu), "status")
    wrong(t, 1, "not a message of its protocol", "--control", server(t, "ssh", b"SSH-2.0-OpenSSH_9.2\r\n"), "status")
    wrong(t, 1, "has closed the connection", "--control", server(t, "mute", b""), "status")
    wrong(t, 1, "has closed the connection", "--control", server(t, "gone", ours, done), "status")
    wrong(t, 1, "has closed the connection", "--control", server(t, "half", ours, done, b'{"return":'), "status")
    wrong(t, 1, "not a message of its protocol", "--control", server(t, "array", ours, done, b"[1,2]\n"), "status")
    event = b'{"event":"X","timestamp":{"seconds":1,"microseconds":1}}\r\n'
    said = t.fleece("--control", server(t, "events", ours, done, event * 2000 + b'{"return":{"a":1},"id":2}\n'), "qmp",
                    '{"execute":"x"}')
    assert json.loads(said.stdout) == {"a": 1}


def test_commands(t):
    d = t.daemon({"vda": t.disk("a.raw", 4 * MIB), "vdb": t.disk("b.raw", MIB)})
    said = d.fleece("status").stdout
    for expected in (f"VM {t.vm}", "vda", "4 MiB", "vdb", "read-write", "no snapshots", d.uri("vda"), "256 MiB at most"):
        assert expected in said, f"{expected} is not in\n{said}"
    assert "snapshot one created" in d.fleece("snapshot", "create", "one", "--drain-timeout", "0.5").stdout
    wrong(t, 1, "'one'", "--control", d.control, "snapshot", "create", "one")
    made = json.loads(d.fleece("--json", "snapshot", "create").stdout)
    assert made["state"] == "live" and [e["disk"] for e in made["exports"]] == ["vda", "vdb"]
    listed = [json.loads(line) for line in d.fleece("--json", "snapshot", "list").stdout.splitlines()]
    assert [s["name"] for s in listed] == ["one", made["name"]]
    said = d.fleece("snapshot", "list").stdout
    assert "one" in said and "live" in said
    said = d.fleece("status").stdout
    assert "vda@one" in said and "read-only" in said
    assert d.fleece("snapshot", "delete", "one").stdout == "snapshot one deleted\n"
    wrong(t, 1, "one", "--control", d.control, "snapshot", "delete", "one")
    assert json.loads(d.fleece("--json", "snapshot", "delete", made["name"]).stdout) == {}
    assert d.fleece("snapshot", "list").stdout == "no snapshots\n"
    assert json.loads(d.fleece("qmp", '{"execute":"query-status"}').stdout)["running"]
    wrong(t, 1, "has not been found", "--control", d.control, "qmp", '{"execute":"nonsense"}')
    wrong(t, 1, "is unexpected", "--control", d.control, "qmp", '{"execute":"quit","arguments":{"x":1}}')


def test_output_that_cannot_be_written(t):
    d = t.daemon({"vda": t.disk("a.raw", MIB)})
    with open("/dev/full", "w") as full:
        process = t.spawn(t.program("fleece"), "--control", d.control, "status", stdout=full, stderr=-1)
        said = process.communicate(timeout=harness.SOON)[1].decode()
    assert process.returncode == 1 and "can't write the output: No space left on device" in said, said


def test_every_option_is_in_the_manual(t):
    """What the programs take is what --help and the manual page name, and nothing else: no knob is hidden in the interface,
    and none is promised that is not there (P20)."""
    for program, page in (("fleece", "fleece.1"), ("fleeced", "fleeced.8")):
        text = (harness.ROOT / "docs/man" / page).read_text()
        text = re.sub(r"\\f[BIR]", " ", text).replace("\\", "")  # without the markup
        manual = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", text))
        shown = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", t.run(t.program(program), "--help").stdout))
        assert manual == shown | {"--help", "--version"}, f"{page}: {sorted(manual ^ shown)}"
        said = t.run(t.program(program), "--no-such-knob", status=2).stderr
        assert "--no-such-knob" in said or "no-such-knob" in said, said


harness.main()
