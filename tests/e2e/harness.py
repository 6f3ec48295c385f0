# SPDX-License-Identifier: GPL-2.0-or-later
"""What every end-to-end test stands on: a temporary folder, the two programs under test, clients, a QMP connection.

A test script holds functions named test_*, each taking a Case, and ends with `harness.main()`:

    import harness

    def test_live_disk_is_listed(t):
        disk = t.disk("a.raw", 64 << 20)
        d = t.daemon({"vda": disk})
        assert "vda" in t.run("nbdinfo", "--list", d.uri("")).stdout
        d.stop()

    harness.main()

Each function runs in a Case of its own. When it returns, daemons that still run are stopped in an orderly way, and then
nothing may be left: no process, no socket, no shared memory, nothing in the run-time folder. A daemon that ends with the
wrong status, or in whose log a sanitizer has spoken, fails the test. `./SCRIPT NAME...` runs only functions whose name
holds one of the NAMEs; FLEECE_KEEP=1 keeps the folder. One line "PASS|FAIL|SKIP name" is printed for each function;
the script ends with 1 when one failed, with 77 when all were skipped.

Run it with /usr/bin/python3 (Debian's libnbd module lives there). FLEECE_BUILD names the build folder (default: build)."""
import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("FLEECE_BUILD", ROOT / "build")).resolve()
# Sanitizers, emulation and a loaded machine are slower; time limits below are for a release build.
FACTOR = float(os.environ.get("FLEECE_TIMEOUT_FACTOR", "1"))
LONG = os.environ.get("FLEECE_CHECK") == "long"  # ./check --long
# Seconds after which what should happen soon has failed to. Nobody waits as long unless something is wrong: it is no
# measure of speed, and a machine may stand still for a moment.
PATIENCE = 60.0
SOON = PATIENCE * FACTOR  # the same, for what is not told of builds
SANITIZER = re.compile(r"(Address|Leak|Thread|Memory)Sanitizer|runtime error:")
# A build without a sanitizer: its memory says something.
PLAIN = not BUILD.name.startswith("build-")
MARK = "FLEECE_TEST_MARK"  # in the environment of every process that a case starts


class Skip(Exception):
    """This test can't run here; the reason."""


class QmpError(Exception):
    def __init__(self, error):
        super().__init__(f"{error.get('class')}: {error.get('desc')}")
        self.kind, self.text = error.get("class"), error.get("desc")


def wait_for(what, condition, timeout=PATIENCE, pause=0.01):
    """Polls until condition() is true and returns its value; AssertionError naming `what` after timeout."""
    end = time.monotonic() + timeout * FACTOR
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {timeout * FACTOR:g} s still not: {what}")
        time.sleep(pause)


def need(*programs):
    """Skips the test unless all programs are installed."""
    missing = [p for p in programs if not shutil.which(p)]
    if missing:
        raise Skip(f"not installed: {', '.join(missing)}")


def free_port():
    """A TCP port of 127.0.0.1 that was free a moment ago, and that the kernel gives to nobody who does not ask for it."""
    while True:
        port = random.SystemRandom().randrange(10000, 30000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def data_of(path):
    """Bytes of a file that are data, not hole. (It takes more: a file system notes where the pieces are, and may reserve
    more than was written.)"""
    with open(path, "rb") as f:
        end, at, found = os.fstat(f.fileno()).st_size, 0, 0
        while at < end:
            try:
                start = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError as e:
                if e.errno == errno.ENXIO:
                    break
                raise
            at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            found += at - start
        return found


def best_of(count, limit, measure):
    """The least that `measure()` gave; as soon as one is below the limit it is that one. A machine that stands still for a
    moment makes one of them long, what is slow makes all of them long."""
    least = None
    for _ in range(count):
        found = measure()
        least = found if least is None else min(least, found)
        if least < limit:
            break
    return least


def pattern(length, seed=0):
    """Reproducible bytes that neither repeat nor compress: twice as quick as those of random."""
    return hashlib.shake_128(str(seed).encode()).digest(length)


@functools.lru_cache(maxsize=160)
def pattern_mib(seed):
    """A whole MiB of them: the functions of a script have the same disks, so each is made once."""
    return pattern(1 << 20, seed)


class Qmp:
    """A client of the control socket. execute() returns what is in "return" or raises QmpError; events are kept."""

    def __init__(self, path, timeout=2 * PATIENCE):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout * FACTOR)
        self.socket.connect(str(path))
        self.stream = self.socket.makefile("r")
        self.events = []
        self.greeting = self._receive()["QMP"]
        self.execute("qmp_capabilities")

    def _receive(self):
        line = self.stream.readline()
        if not line:
            raise ConnectionError("the daemon closed the control connection")
        return json.loads(line)

    def send(self, command, **arguments):
        message = {"execute": command}
        if arguments:
            message["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self):
        """The next answer; events before it are kept."""
        while True:
            message = self._receive()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(message["error"])
            elif "return" in message:
                return message["return"]

    def execute(self, command, **arguments):
        self.send(command, **arguments)
        return self.receive()

    def event(self, name, timeout=PATIENCE):
        """The next event of that name, taken out of those kept; AssertionError when none comes."""
        end = time.monotonic() + timeout * FACTOR
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(i)
            left = end - time.monotonic()
            assert left > 0, f"no event {name} came; those that did: {[e['event'] for e in self.events]}"
            usual = self.socket.gettimeout()
            self.socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                self.events.append(self._receive())
            self.socket.settimeout(usual)  # what is asked next has all of it, however long this took

    def close(self):
        self.stream.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Daemon:
    """A running fleeced. Made by Case.daemon()."""

    def __init__(self, case, arguments, control, nbd, environment, log_name, **options):
        self.case, self.control, self.nbd = case, control, nbd
        self.arguments = [str(a) for a in arguments]
        self.log_path = case.dir / log_name
        with open(self.log_path, "ab") as log:
            self.process = case.spawn(*self.arguments, stdout=log, stderr=log, env=environment, **options)
        self.ended = False

    @property
    def pid(self):
        return self.process.pid

    def memory(self):
        """Resident bytes that are its own or shared memory: none of files, whose pages come and go as the kernel likes."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return sum(int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M)[1]) << 10 for name in ("RssAnon", "RssShmem"))

    def log(self):
        return self.log_path.read_text(errors="replace")

    def _connects(self):
        if self.process.poll() is not None:
            raise AssertionError(f"fleeced ended with {self.process.returncode} at start:\n{self.log()}")
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(PATIENCE * FACTOR)
                s.connect(str(self.control))
                if not s.recv(1):
                    return False
            if self.nbd.startswith("unix:"):
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(self.nbd[5:])
            elif self.nbd:
                host, port = self.nbd[4:].rsplit(":", 1)
                socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
            return True
        except OSError:
            return False

    def wait_ready(self, timeout=2 * PATIENCE):
        wait_for("the daemon answers", self._connects, timeout)

    def uri(self, export):
        """The NBD URI of "vda" or "vda@SNAPSHOT"; "" for the server itself."""
        if self.nbd.startswith("unix:"):
            return f"nbd+unix:///{export}?socket={self.nbd[5:]}"
        return f"nbd://{self.nbd[4:]}/{export}"

    def qmp(self):
        return Qmp(self.control)

    def status(self):
        """What `fleece --json status` prints, as a dictionary."""
        return json.loads(self.fleece("--json", "status").stdout)

    def fleece(self, *arguments, **options):
        """Runs the CLI against this daemon."""
        return self.case.run(BUILD / "fleece", "--control", self.control, *arguments, **options)

    def stop(self, status=0, timeout=PATIENCE):
        """An orderly end: SIGTERM, then the exit status, the log and what is left are looked at."""
        if not self.ended:
            self.process.send_signal(signal.SIGTERM)
        self.wait(status, timeout)

    def wait(self, status=0, timeout=PATIENCE):
        self.ended = True
        try:
            code = self.process.wait(timeout * FACTOR)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"fleeced did not end within {timeout * FACTOR:g} s:\n{self.log()}") from None
        assert code == status, f"fleeced ended with {code}, not {status}:\n{self.log()}"
        assert not SANITIZER.search(self.log()), self.log()
        if status == 0:
            self.case.check_nothing_left()

    def kill(self):
        """kill -9. What it leaves behind must be gone after the next orderly run."""
        self.process.kill()
        self.process.wait()
        self.ended = True
        assert not SANITIZER.search(self.log()), self.log()


class Case:
    """One test: its folder, its processes."""

    def __init__(self, name):
        self.name = name
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="fl-"))  # short: the path of a unix socket has 107 bytes
        self.vm = self.mark = f"t{os.getpid()}-{self.dir.name[3:]}"
        self.processes, self.daemons, self.borrowed = [], [], contextlib.ExitStack()
        for folder in ("run", "state"):
            (self.dir / folder).mkdir()
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=str(self.dir / "run"), LC_ALL="C",
                                PATH=f"/usr/bin:{os.environ['PATH']}:/usr/sbin:/sbin",  # nbdsh runs Debian's python3
                                XDG_STATE_HOME=str(self.dir / "state"), **{MARK: self.mark})

    # --- things to work with

    def borrow(self, context):
        """What a context gives, until the test has ended and its processes are gone."""
        return self.borrowed.enter_context(context)

    def path(self, name):
        return self.dir / name

    def disk(self, name, size, fill=None):
        """A raw image. fill: None = sparse, an integer = the seed of a random pattern, or bytes for its beginning."""
        path = self.dir / name
        with open(path, "wb") as f:
            if isinstance(fill, int):
                for start in range(0, size, 1 << 20):
                    f.write(pattern_mib(f"{fill}-{start}")[:size - start])
            elif fill:
                f.write(fill)
            f.truncate(size)
        return path

    def daemon(self, disks, *options, nbd=None, env=None, wait=True, wrapper=()):
        """Starts fleeced for {name: path or "path,option=value"}; one NBD unix socket unless `nbd` says other (""
        is none). wait=False: returns before it is ready. wrapper: a command that runs the command."""
        control = self.dir / f"control{len(self.daemons)}.sock"
        nbd = f"unix:{self.dir}/nbd{len(self.daemons)}.sock" if nbd is None else nbd
        arguments = [*wrapper, self.program("fleeced"), "--name", self.vm, "--control", control]
        for name, where in disks.items():
            arguments += ["--disk", f"{name}={where}"]
        if nbd:
            arguments += ["--nbd", nbd]
        daemon = Daemon(self, [*arguments, *options], control, nbd, dict(self.environment, **(env or {})),
                        f"fleeced{len(self.daemons)}.log")
        self.daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    def borrow_vm(self, name):
        """The VM gets a name that a page of the documentation uses, and that other tests use, too: one after the other."""
        lock = self.borrow(socket.socket(socket.AF_UNIX))

        def bound():
            with contextlib.suppress(OSError):
                lock.bind(f"\0fleece-test-{name}")
                return True
        wait_for(f"no other test has a VM {name}", bound, timeout=800, pause=0.02)
        self.vm = name  # from now on: what is left under it is removed at the end

    def other_host(self):
        """What makes a daemon of the same VM one of another host, for daemon(): its run-time folder and its shared
        memory are not those of the others."""
        folder = self.path("other-host")
        folder.mkdir(mode=0o700)
        if os.geteuid() != 0:
            return {"env": {"XDG_RUNTIME_DIR": str(folder)}}
        if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
            raise Skip("root may not have mounts of its own here (unshare -m)")
        script = ("mkdir -p /run/fleece && mount --bind \"$0\" /run/fleece && "
                  "mount -t tmpfs none /dev/shm && exec \"$@\"")
        return {"wrapper": ("unshare", "-m", "sh", "-c", script, folder)}

    @staticmethod
    def program(name):
        path = BUILD / name
        if not path.exists():
            raise Skip(f"{path} is not built")
        return path

    def run(self, *arguments, status=0, timeout=3 * PATIENCE, **options):
        """Runs a program to its end and returns it with .stdout and .stderr as text; fails on another exit status
        (status=None: any)."""
        options.setdefault("env", self.environment)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        arguments = [str(a) for a in arguments]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace",
                              timeout=timeout * FACTOR, check=False, **options)
        if status is not None and done.returncode != status:
            raise AssertionError(f"{' '.join(arguments)}\n  ended with {done.returncode}, not {status}\n"
                                 f"  stdout: {done.stdout[-2000:]}\n  stderr: {done.stderr[-2000:]}")
        assert not SANITIZER.search(done.stderr), done.stderr
        return done

    def fleece(self, *arguments, **options):
        return self.run(self.program("fleece"), *arguments, **options)

    def spawn(self, *arguments, **options):
        """Starts a program in the background; it is killed at the end of the case at the latest."""
        options.setdefault("env", self.environment)
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen([str(a) for a in arguments], **options)
        self.processes.append(process)
        return process

    def spawn_server(self, program, *arguments, **options):
        """Starts nbdkit or qemu-storage-daemon and returns it when it serves: both write a pid file then. A unix socket is
        there earlier, before anybody listens on it."""
        pid_file = self.dir / f"server{len(self.processes)}.pid"
        pid_file.unlink(missing_ok=True)
        process = self.spawn(program, "--pidfile", pid_file, *arguments, **options)
        wait_for(f"{program} serves", lambda: pid_file.exists() or process.poll() is not None)
        assert process.poll() is None, f"{program} ended with {process.returncode} at its start"
        return process

    # --- the end

    def strays(self):
        """Processes with the mark of this case that are alive, as {pid: command line}."""
        found, mark = {}, f"{MARK}={self.mark}\0".encode()
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes() + b"\0":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def check_nothing_left(self):
        """What an orderly end of a daemon owes: no socket of its own, no shared memory, an empty run-time folder."""
        running = [d for d in self.daemons if not d.ended]
        left = []
        if not running:
            for folder in (f"/dev/shm/fleece-{os.getuid()}/{self.vm}", f"/run/fleece/{self.vm}"):
                if os.path.lexists(folder):
                    left.append(folder)
            left += [str(p) for p in (self.dir / "run").rglob("*") if not p.is_dir()]
        for daemon in self.daemons:
            if daemon not in running:
                sockets = [str(daemon.control)] + ([daemon.nbd[5:]] if daemon.nbd.startswith("unix:") else [])
                left += [s for s in sockets if os.path.lexists(s) and stat.S_ISSOCK(os.lstat(s).st_mode)
                         and not any(s in other.arguments or f"unix:{s}" in other.arguments for other in running)]
        assert not left, f"left behind: {', '.join(left)}"

    def finish(self):
        """Stops what runs and looks at what is left."""
        for daemon in self.daemons:
            if not daemon.ended:
                daemon.stop()
        strays = self.strays()
        assert not strays, f"processes left behind: {strays}"
        if not any(d.process.returncode != 0 for d in self.daemons):
            self.check_nothing_left()

    def clean(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in self.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shm = pathlib.Path(f"/dev/shm/fleece-{os.getuid()}")
        shutil.rmtree(shm / self.vm, ignore_errors=True)
        shutil.rmtree(f"/run/fleece/{self.vm}", ignore_errors=True)
        self.borrowed.close()  # not before: the next test may have a VM of that name at once
        if os.environ.get("FLEECE_KEEP"):
            print(f"kept: {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)


def run_one(name, function):
    """Runs one function in a case of its own; "PASS", "FAIL" or "SKIP"."""
    case = Case(name)
    started = time.monotonic()
    try:
        try:
            function(case)
        except BaseException:
            for daemon in case.daemons:
                print(f"--- {daemon.log_path.name}:\n{daemon.log()[-4000:]}", flush=True)
            raise
        case.finish()
        result, remark = "PASS", f"{time.monotonic() - started:.1f} s"
    except Skip as reason:
        result, remark = "SKIP", str(reason)
    except KeyboardInterrupt:
        raise
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        result, remark = "FAIL", ""
    finally:
        case.clean()
    print(f"{result} {name}{': ' if remark else ''}{remark}", flush=True)
    return result


def main(functions=None):
    """Runs the test_* functions of the calling script and exits."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a check in the background makes all programs deaf to it
    functions = functions or {name: value for name, value in vars(sys.modules["__main__"]).items()
                              if name.startswith("test_") and callable(value)}
    chosen = {name: f for name, f in functions.items() if not sys.argv[1:] or any(a in name for a in sys.argv[1:])}
    results = [run_one(name, function) for name, function in chosen.items()]
    if not results:
        print("no such test")
        sys.exit(2)
    if "FAIL" in results:
        sys.exit(1)
    sys.exit(77 if all(r == "SKIP" for r in results) else 0)
