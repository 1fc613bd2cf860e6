"""A process that died is noticed by all others within a minute, whatever they are waiting for.

A collective waits for its peers for hours (`processes.PATIENCE`), and a launcher sees only its own machine. So each
process holds one TCP connection to process 0. When a process dies, of whatever, the kernel closes its socket: process 0
reads the end of a stream that did not say goodbye, tells the others, and each of them leaves by `os._exit`, for a main
thread inside a collective cannot be interrupted. The death of process 0 is seen by the others in the same way. A machine
that vanishes without closing anything (power, network) is noticed by TCP's keepalive after 15 + 3 x 10 s.

No heartbeats: a process that holds Python's lock for minutes sends none, and is not dead. The kernel answers keepalive
probes for it. For the same reason a process that was stopped (SIGSTOP) is not taken for dead: the others wait for it until
it goes on.

The exit code is 1, without the mark of an end by own word (`util.core.ending.ENDED_BY_ITSELF`), so that a launcher with
restarts starts the processes again.
"""

import ctypes
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time

from util.core.ending import ENDED_BY_ITSELF, leave_mark

IDLE_S, INTERVAL_S, PROBES = 15, 10, 3  # keepalive: a silent machine is dead after 45 s
CONNECT_S = 10.0
GRACE_S = 1.0  # a launcher of the same machine acts at once, and its word comes first
PEER_GRACE_S = 30.0  # for what a process that ended by its own word told the others by the usual way
ORDERLY, FAILED = "0", "failed"  # ways to say goodbye, besides an exit code: done or stopped; an error nobody foresaw


class Lifeline:
    """This process's connections, and the daemon thread that watches them. Make it in all processes, `close` it in all."""

    def __init__(self, store, rank: int, size: int, local_rank: int = 0):
        """store: what all processes share, with names of this attempt. `problem` says, in process 0, who is not connected
        (then the death of these is noticed late)."""
        self.rank, self.local_rank, self.host = rank, local_rank, socket.gethostname()
        self.places = {}  # rank -> (host, local rank), as the others said
        self.problem, self.sockets, self.left, self.failed, self.closing = "", [], set(), False, threading.Event()
        if rank == 0:
            self._listen(store, size)
        else:
            self._connect(store)
        self.selector, (self.waker, self.woken) = selectors.DefaultSelector(), socket.socketpair()
        for connection in (self.woken, *self.sockets):
            self.selector.register(connection, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self.thread.start()
        if hasattr(os, "register_at_fork"):  # a loader's worker would hold the connection open after our death
            os.register_at_fork(after_in_child=self._forget)

    # ---- making the connections

    def _listen(self, store, size: int) -> None:
        token, self.by_socket = secrets.token_hex(16), {}
        dual = socket.has_dualstack_ipv6()
        with socket.create_server(("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual,
                                  backlog=size) as listener:
            store.set("lifeline", "\n".join([token, str(listener.getsockname()[1]), self.host, *_addresses()]))
            connected = [int(rank) for rank in range(1, size) if store.get(f"lifeline/{rank}") == b"connected"]
            listener.settimeout(CONNECT_S)
            while len(self.by_socket) < len(connected):
                connection, _ = listener.accept()
                connection.settimeout(CONNECT_S)
                told = _read_line(connection).split(" ", 3)
                if told[0] != token:  # a stranger
                    connection.close()
                    continue
                rank = int(told[1])
                self.places[rank] = (told[3], int(told[2]))
                self.by_socket[connection] = rank
                self.sockets.append(_kept_alive(connection))
        missing = sorted(set(range(1, size)) - set(connected))
        if missing:
            self.problem = (f"warning: process {', '.join(map(str, missing))} cannot reach process 0 on {self.host} by a port "
                            "of its own (a firewall?): should a process of another machine die, that is noticed after hours")

    def _connect(self, store) -> None:
        token, port, host, *addresses = store.get("lifeline").decode().split("\n")
        self.places[0] = (host, 0)
        for address in dict.fromkeys(filter(None, [os.environ.get("MASTER_ADDR"), host, *addresses])):
            try:
                connection = socket.create_connection((address, int(port)), timeout=CONNECT_S)
                connection.sendall(f"{token} {self.rank} {self.local_rank} {self.host}\n".encode())
            except OSError:
                continue  # the next address may do
            self.by_socket = {connection: 0}
            self.sockets.append(_kept_alive(connection))
            store.set(f"lifeline/{self.rank}", "connected")
            return
        self.by_socket = {}
        store.set(f"lifeline/{self.rank}", "not connected")

    def _forget(self) -> None:
        for connection in (self.waker, self.woken, *self.sockets):
            connection.close()

    # ---- watching them

    def _watch(self) -> None:
        buffers = dict.fromkeys(self.sockets, b"")
        while buffers and not self.closing.is_set():
            for key, _ in self.selector.select():
                connection = key.fileobj
                if self.closing.is_set():
                    return
                try:
                    data = connection.recv(4096)
                except OSError:  # reset, or no answer to the probes
                    data = b""
                buffers[connection] += data
                *lines, buffers[connection] = buffers[connection].split(b"\n")
                over = not data
                for line in lines:
                    over |= self._heard(self.by_socket[connection], line.decode())
                if over:
                    self.selector.unregister(connection)
                    del buffers[connection]
                if not data and self.by_socket[connection] not in self.left and not self.closing.is_set():
                    self._ended(self.by_socket[connection], "without a word")

    def _heard(self, rank: int, line: str) -> bool:
        """A line of another process -> whether it is its last."""
        word, *rest = line.split(" ", 3)
        if word == "bye":
            self.left.add(rank)
            if rest[0] == FAILED:
                self._ended(rank, "with an error")
            elif rest[0] != ORDERLY:
                self._ended_by_itself(rank, int(rest[0]))
            return True
        if word == "dead":
            self.places[int(rest[0])] = (rest[2].split(" ", 1)[0], int(rest[1]))
            self._ended(int(rest[0]), rest[2].split(" ", 1)[1])
        if word == "left":
            self._ended_by_itself(int(rest[0]), int(rest[1]))
        return False

    def _tell(self, line: str) -> None:
        for connection in self.sockets:
            try:
                connection.sendall(line.encode())
            except OSError:
                continue  # it has ended, too

    def _ended(self, rank: int, how: str) -> None:
        """Process `rank` is dead: say so and leave, unless this process does so by itself first."""
        host, local_rank = self.places[rank]
        if self.rank == 0:
            self._tell(f"dead {rank} {local_rank} {host} {how}\n")
        if not self.closing.wait(GRACE_S):
            again = "" if os.environ.get(ENDED_BY_ITSELF) else ": start again to go on"  # our launcher says what it does
            speaks = self.local_rank == 0 or (local_rank == 0 and host == self.host and self.local_rank == 1)
            self._leave(f"process {rank} on {host} ended {how}; what was saved stays{again}", 1, speaks)

    def _ended_by_itself(self, rank: int, code: int) -> None:
        """Process `rank` ended by its own word, as an error that it printed: leave with its exit code after a while."""
        if self.rank == 0:
            self._tell(f"left {rank} {code}\n")
        ends_at = time.monotonic() + PEER_GRACE_S
        while time.monotonic() < ends_at and not self.failed and not self.closing.wait(0.1):
            continue
        if not self.closing.is_set():
            leave_mark(code)  # a launcher need not start again what is wrong
            self._leave(f"process {rank} ended with exit code {code}, and its own line says why", code, self.local_rank == 0)

    def _leave(self, line: str, code: int, speaks: bool) -> None:
        try:
            sys.stdout.flush()
            if speaks:  # one process of each machine
                print(f"error: {line}", file=sys.stderr, flush=True)
        finally:  # also where nobody reads what we print
            os._exit(code)

    # ---- the way out

    def wait_for_news(self, seconds: float = 3 * GRACE_S) -> None:
        """After a failed collective: if a peer's end is why, this process ends here, with the line that says so."""
        self.failed = True
        time.sleep(seconds)

    def close(self, goodbye: str = ORDERLY) -> None:
        """Say goodbye: ORDERLY, FAILED or an exit code. What happens to the others is no matter of this process any more."""
        self.closing.set()
        self.waker.send(b"!")
        self._tell(f"bye {goodbye}\n")
        self.thread.join()
        self.selector.close()
        self._forget()


def die_with_launcher() -> None:
    """Ask Linux to end this process with the launcher that started it, if that is ours: a launcher that was killed would
    leave processes behind that train on, unseen, into the folder of the next start."""
    if os.environ.get(ENDED_BY_ITSELF) and sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def _kept_alive(connection: socket.socket) -> socket.socket:
    """The connection with TCP's probes on, so that a machine that vanished ends it."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", IDLE_S), ("TCP_KEEPINTVL", INTERVAL_S), ("TCP_KEEPCNT", PROBES),
                        ("TCP_USER_TIMEOUT", 1000 * (IDLE_S + PROBES * INTERVAL_S)), ("TCP_NODELAY", 1)):
        if hasattr(socket, name):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _addresses() -> list[str]:
    """This machine's own addresses, as its name resolves: another machine may not know the name."""
    try:
        return list(dict.fromkeys(entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)))
    except OSError:
        return []


def _read_line(connection: socket.socket) -> str:
    """The first line, "" from a stranger that sends none."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < 1024:
            more = connection.recv(1)
            if not more:
                break
            data += more
    except OSError:
        return ""
    return data.decode(errors="replace").strip()
