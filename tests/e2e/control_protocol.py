#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The control protocol: negotiation, commands, the sentence for each mistake, events, leases."""
import json
import re
import signal
import socket

import harness

MIB = 1 << 20
PAGE = harness.ROOT / "docs/control-protocol.md"


class Raw:
    """A control connection that sends what it is told."""

    def __init__(self, d, negotiate=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(harness.SOON)
        self.socket.connect(str(d.control))
        self.stream = self.socket.makefile("rb")
        self.greeting = self.read()
        if negotiate:
            assert self.ask({"execute": "qmp_capabilities"}) == {"return": {}}

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else json.dumps(data).encode())

    def read(self):
        """The next message; {} at the end of the connection."""
        line = self.stream.readline()
        assert line.endswith(b"\r\n") or not line, line
        return json.loads(line) if line else {}

    def reply(self):
        while "event" in (message := self.read()):
            pass
        return message

    def ask(self, data):
        self.send(data)
        return self.reply()

    def close(self):
        self.stream.close()
        self.socket.close()


def refused(answer, kind, text):
    assert "error" in answer, answer
    assert answer["error"]["class"] == kind and text in answer["error"]["desc"], f"{answer} does not say: {text}"


def serve(t, *options, size=4 * MIB):
    return t.daemon({"vda": t.disk("a.raw", size)}, *options)


def test_negotiation(t):
    d = serve(t)
    c = Raw(d, negotiate=False)
    version = c.greeting["QMP"]["version"]
    assert c.greeting["QMP"]["capabilities"] == [] and set(version["fleece"]) == {"major", "minor", "micro"}
    refused(c.ask({"execute": "query-status", "id": 1}), "CommandNotFound", "Expecting capabilities negotiation")
    refused(c.ask({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}), "GenericError", "enable")
    refused(c.ask({"execute": "qmp_capabilities", "arguments": {"x": 1}}), "GenericError", "'enable' only")
    assert c.ask({"execute": "qmp_capabilities", "id": "x", "arguments": {"enable": []}}) == {"return": {}, "id": "x"}
    refused(c.ask({"execute": "qmp_capabilities"}), "CommandNotFound", "already complete")
    assert c.ask({"execute": "query-version"})["return"] == version
    assert c.ask({"execute": "query-status"})["return"] == {"status": "running", "running": True, "singlestep": False}


def test_what_is_wrong_is_named(t):
    c = Raw(serve(t))
    for message, kind, text in (
            ({"execute": "nonsense"}, "CommandNotFound", "The command nonsense has not been found"),
            ({}, "GenericError", "lacks member 'execute'"),
            ({"execute": 7}, "GenericError", "'execute' must be a string"),
            ({"execute": "quit", "arguments": []}, "GenericError", "'arguments' must be an object"),
            ({"execute": "quit", "arguments": None}, "GenericError", "'arguments' must be an object"),
            ({"execute": "quit", "surplus": 1}, "GenericError", "member 'surplus' is unexpected"),
            ({"exec-oob": "quit"}, "GenericError", "member 'exec-oob' is unexpected"),
            ({"execute": "quit", "arguments": {"now": True}}, "GenericError",
             "Parameter 'now' is unexpected: quit takes no arguments"),
            ({"execute": "fleece-snapshot-create", "arguments": {"nam": "x"}}, "GenericError",
             "Parameter 'nam' is unexpected: fleece-snapshot-create takes name, lease,"),
            ({"execute": "fleece-snapshot-create", "arguments": {"read-once": "yes"}}, "GenericError",
             "Parameter 'read-once' is 'yes': off, disconnect or eager is right"),
            ({"execute": "fleece-snapshot-create", "arguments": {"name": 1}}, "GenericError", "'name', expected: string"),
            ({"execute": "fleece-snapshot-create", "arguments": {"lease": "on"}}, "GenericError",
             "'lease', expected: boolean"),
            ({"execute": "fleece-snapshot-create", "arguments": {"drain-timeout-ms": 1.5}}, "GenericError",
             "'drain-timeout-ms', expected: integer"),
            ({"execute": "fleece-snapshot-create", "arguments": {"drain-timeout-ms": 0}}, "GenericError",
             "'drain-timeout-ms' is 0, but must be from 1 to 30000"),
            ({"execute": "fleece-snapshot-create", "arguments": {"drain-timeout-ms": 30001}}, "GenericError", "30001"),
            ({"execute": "fleece-snapshot-create", "arguments": {"name": "a b"}}, "GenericError", "'a b'"),
            ({"execute": "fleece-snapshot-create", "arguments": {"name": "x" * 65}}, "GenericError", "1 to 64"),
            ({"execute": "fleece-snapshot-create", "arguments": {"name": ""}}, "GenericError", "1 to 64"),
            ({"execute": "fleece-query-residence", "arguments": {"snapshot": "none", "disk": "vda"}}, "DeviceNotFound",
             "there is no snapshot 'none'"),
            ({"execute": "fleece-snapshot-delete"}, "GenericError", "Parameter 'name' is missing"),
            ({"execute": "fleece-snapshot-delete", "arguments": {"name": "none"}}, "DeviceNotFound", "none")):
        refused(c.ask(dict(message, id=[1, {"a": None}])), kind, text)
    assert c.ask({"execute": "fleece-query-snapshots", "id": {"x": 1}}) == {"return": [], "id": {"x": 1}}


def test_answers_come_in_order(t):
    c = Raw(serve(t))
    names = [f"s{i}" for i in range(10)]
    batch = [{"execute": "fleece-snapshot-create", "arguments": {"name": n}, "id": n} for n in names]
    batch += [{"execute": "fleece-snapshot-delete", "arguments": {"name": n}, "id": n} for n in names]
    c.send(b"".join(json.dumps(m).encode() for m in batch))  # nothing between them
    for name in names + names:
        answer = c.reply()
        assert "return" in answer and answer["id"] == name, answer
    c.send(b'{"execute":"query-status"}')
    c.socket.shutdown(socket.SHUT_WR)  # what was asked before the last byte is answered
    answer, end = c.reply(), c.reply()
    assert "return" in answer and end == {}, (answer, end)


def test_snapshots_and_their_events(t):
    d = serve(t)
    with d.qmp() as watcher, d.qmp() as q:
        made = q.execute("fleece-snapshot-create", name="one")
        uri = f"nbd+unix:///vda@one?socket={d.nbd[5:]}"
        assert made["exports"] == [{"disk": "vda", "export": "vda@one", "size": 4 * MIB, "uri": uri}], made
        assert made["state"] == "live" and made["attempts"] == 1 and not made["leased"], made
        created = watcher.event("FLEECE_SNAPSHOT_CREATED")
        assert created["data"] == {"name": "one", "uuid": made["uuid"], "hold-ns": made["hold-ns"]}
        assert created["timestamp"]["seconds"] > 1.7e9 and 0 <= created["timestamp"]["microseconds"] < 1000000
        try:
            q.execute("fleece-snapshot-create", name="one")
            raise AssertionError("a name was taken twice")
        except harness.QmpError as error:
            assert "'one'" in error.text, error
        unnamed = q.execute("fleece-snapshot-create")["name"]
        assert [s["name"] for s in q.execute("fleece-query-snapshots")] == ["one", unnamed]
        exports = {e["id"]: e for e in q.execute("query-block-exports")}
        assert set(exports) == {"vda", "vda@one", f"vda@{unnamed}"}
        assert exports["vda@one"]["read-only"] and not exports["vda"]["read-only"]
        assert exports["vda"]["type"] == "nbd" and exports["vda@one"]["uri"] == uri
        assert q.execute("fleece-snapshot-delete", name="one") == {}
        assert watcher.event("FLEECE_SNAPSHOT_DELETED")["data"] == {"name": "one", "uuid": made["uuid"]}
        assert [s["name"] for s in q.execute("fleece-query-snapshots")] == [unnamed]
    d.stop()  # with a snapshot alive


def test_a_broken_snapshot_says_why(t):
    harness.need("qemu-io")
    d = t.daemon({"vda": t.disk("a.raw", 32 * MIB, 1)}, "--fleece", "ram=4M")  # zeroes would take no room
    with d.qmp() as watcher, d.qmp() as q:
        made = q.execute("fleece-snapshot-create", name="tight")
        t.run("qemu-io", "-f", "raw", "-c", "write -P 1 0 16M", d.uri("vda"))
        broken = watcher.event("FLEECE_SNAPSHOT_BROKEN")["data"]
        assert broken["name"] == "tight" and broken["uuid"] == made["uuid"] and broken["reason"], broken
        listed = q.execute("fleece-query-snapshots")[0]
        assert listed["state"] == "broken" and listed["reason"] == broken["reason"], listed
        status = d.status()
        assert status["cache"]["bytes-peak"] <= status["cache"]["bytes-max"] == 4 * MIB, status["cache"]
        assert status["disks"][0]["errors"] == 0
        shown = d.fleece("snapshot", "list").stdout
        assert "broken" in shown and broken["reason"] in shown, shown
        q.execute("fleece-snapshot-delete", name="tight")
    assert "tight" in d.log() and broken["reason"] in d.log()


def test_a_lease_ends_with_its_connection(t):
    d = serve(t)
    with d.qmp() as watcher:
        holder, other = d.qmp(), d.qmp()
        assert holder.execute("fleece-snapshot-create", name="leased", lease=True)["leased"]
        other.execute("fleece-snapshot-create", name="free")
        other.close()
        harness.wait_for("both are live", lambda: len(watcher.execute("fleece-query-snapshots")) == 2)
        holder.close()
        assert watcher.event("FLEECE_SNAPSHOT_DELETED")["data"]["name"] == "leased"
        assert [s["name"] for s in watcher.execute("fleece-query-snapshots")] == ["free"]
        hasty = Raw(d)  # gone before the answer
        hasty.send({"execute": "fleece-snapshot-create", "arguments": {"name": "hasty", "lease": True}})
        hasty.close()
        harness.wait_for("no hasty one stays",
                         lambda: [s["name"] for s in watcher.execute("fleece-query-snapshots")] == ["free"])


def test_counters_are_exact(t):
    harness.need("qemu-io")
    d = serve(t)
    t.run("qemu-io", "-f", "raw", "-c", "write 0 64k", "-c", "write 64k 64k", "-c", "read 0 4k", "-c", "flush",
          d.uri("vda"))
    disk = d.status()["disks"][0]
    assert disk["writes"] == 2 and disk["written-bytes"] == 128 * 1024, disk
    assert disk["reads"] >= 1 and disk["flushes"] >= 1 and disk["errors"] == 0, disk
    assert disk["driver"] == "file" and disk["file"] == str(t.path("a.raw")) and disk["size"] == 4 * MIB


def test_quit_and_shutdown(t):
    d = serve(t)
    watcher, q = d.qmp(), d.qmp()
    assert q.execute("quit") == {}
    assert watcher.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-qmp-quit"}
    d.wait(0)
    watcher.close()
    q.close()
    d = serve(t)
    watcher = d.qmp()
    d.process.send_signal(signal.SIGINT)
    assert watcher.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-signal"}
    d.wait(0)
    watcher.close()


def test_the_page_lists_every_command_and_event(t):
    q = Raw(serve(t))
    page = PAGE.read_text()
    headings = "".join(re.findall(r"^###+ .*\n", page, re.M))
    documented = set(re.findall(r"`([a-z_-]+)`", headings))
    known = {c["name"] for c in q.ask({"execute": "query-commands"})["return"]}
    assert documented == known, f"documented {documented - known}, not documented {known - documented}"
    sources = "".join(p.read_text() for p in (harness.ROOT / "src/control").glob("*.c"))
    events = set(re.findall(r'"(FLEECE_[A-Z_]+|SHUTDOWN)"', sources))
    documented = set(re.findall(r"^### `([A-Z_]+)`$", page, re.M))
    assert documented == events, f"documented {documented}, sent {events}"


harness.main()
