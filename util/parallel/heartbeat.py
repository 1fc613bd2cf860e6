"""A process that is gone is noticed by all others within two minutes, whatever they are waiting for.

A collective waits for its peers as long as one of them may work alone, torchrun sees the processes of its own
machine only, and a machine without power closes no connection. So each process counts in the store of the
group, once a second, and reads the count of the next process. Where that stands still for SILENCE_S, that
process is dead; where the store does not answer, the machine that holds it. Whoever sees it says so in the
store, and all leave by `os._exit`, because a main thread inside a collective can't be interrupted. The same
way they learn of an error that one process has met alone.

The counting is done by a thread: a long piece of work, in whatever process, kills nobody. A process that is
stopped (SIGSTOP) for longer than SILENCE_S counts as dead.
"""

import contextlib
import os
import socket
import sys
import threading
import time

import torch.distributed as dist

from util.core.ending import leave_mark

SILENCE_S = float(os.environ.get("PEER_TIMEOUT") or 100)
INTERVAL_S = 1.0
GRACE_S = 5.0  # for a process that learns of an error in the usual way, or that its launcher ends
LINGER_S = 15.0  # process 0 keeps its store, so that the others read there why it ends


class Heartbeat:
    """This process's count, and the two threads for it. Make it in all processes, `close` it in all.

    store: of the group, a connection of its own, with the name of each process's machine under host/RANK.
    holds_store: whether it ends with this process.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, holds_store: bool) -> None:
        self.store, self.rank, self.size, self.holds_store = store, rank, size, holds_store
        # why all leave: "1 CODE LINE" after an error that one has reported, "0 1 LINE" after a death
        self.word = ""
        self.heard, self.failed, self.closing = time.monotonic(), False, threading.Event()
        self.threads = [threading.Thread(target=target, name="heartbeat", daemon=True)
                        for target in (self._beat, self._watch)]
        for thread in self.threads:
            thread.start()

    def _beat(self) -> None:
        """Count, and read the count of the next process that has not left. Where the store's machine
        vanishes, this hangs."""
        watched, before = (self.rank + 1) % self.size, None
        while not self.word and not self.closing.wait(INTERVAL_S):
            try:
                self.store.add(f"beats/{self.rank}", 1)
                if self.store.check(["word"]):
                    self.word = self.store.get("word").decode()
                while watched != self.rank and self.store.check([f"gone/{watched}"]):
                    watched = (watched + 1) % self.size
                beats = (watched, self.store.add(f"beats/{watched}", 0))
                if beats != before:
                    before, self.heard = beats, time.monotonic()
                elif time.monotonic() - self.heard > SILENCE_S:
                    self.word = (f"0 1 process {watched} on {self.store.get(f'host/{watched}').decode()} has "
                                 f"not been heard of for {SILENCE_S:g} s; what was saved stays: start again "
                                 "to go on")
                    self.store.set("word", self.word)
            except dist.DistError:
                self.word = self.word or self._store_lost("is gone")

    def _watch(self) -> None:
        """Leave as soon as there is a word; also where the other thread gets no answer."""
        before = time.monotonic()
        while not self.closing.wait(INTERVAL_S):
            now = time.monotonic()
            # this process itself was stopped; whether the others still wait, the store says
            if now - before > GRACE_S:
                self.heard = now
            before = now
            if not self.word and now - self.heard > SILENCE_S + GRACE_S:
                self.word = self._store_lost(f"has not answered for {now - self.heard:.0f} s")
            if self.word:
                self._leave(*self.word.split(" ", 2))

    def _store_lost(self, how: str) -> str:
        return ("0 1 the store of the processes at "
                f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} {how}: the first process "
                "or its machine ended; what was saved stays: start again to go on")

    def _leave(self, meant: str, code: str, line: str) -> None:
        ends_at = time.monotonic() + GRACE_S
        while time.monotonic() < ends_at and not self.failed:
            if self.closing.wait(0.1):
                return
        if meant == "1":
            leave_mark(int(code))
        try:
            sys.stdout.flush()
            print(f"error (process {self.rank}): {line}", file=sys.stderr, flush=True)
        finally:  # also where nobody reads what we print
            os._exit(int(code))

    def wait_for_news(self) -> None:
        """After a failed collective: where another process's end is known as the reason, this process ends
        here."""
        self.failed = True
        time.sleep(3 * INTERVAL_S)

    def close(self, word: str | None) -> None:
        """Leave; the others need this process no more. word: why they have to leave, too; None where all is
        done: then they leave together, since a last message may still be on its way."""
        names = [f"gone/{rank}" for rank in range(self.size) if rank != self.rank]
        if word is not None:
            self._stop()
        ends_at = time.monotonic() + LINGER_S
        with contextlib.suppress(dist.DistError):  # it is gone already, and with it all who could read there
            if word:
                self.store.set("word", word)
            self.store.set(f"gone/{self.rank}", "")
            while ((word is None or (self.holds_store and time.monotonic() < ends_at))
                   and not self.store.check(names)):
                time.sleep(0.05)
        self._stop()

    def _stop(self) -> None:
        self.closing.set()
        for thread in self.threads:
            thread.join(timeout=GRACE_S)  # one that gets no answer ends with the process


def death_of(rank: int, how: str) -> str:
    """The word of a process that ends by an error that a new launch may not meet again."""
    return (f"0 1 process {rank} on {socket.gethostname()} ended {how}; what was saved stays: start again to "
            "go on")


def error_of(rank: int, code: int) -> str:
    """The word of a process that has said by itself why it ends."""
    return f"1 {code} process {rank} ended with exit code {code}, and its own line says why"
