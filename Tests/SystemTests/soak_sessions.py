# SPDX-License-Identifier: Apache-2.0
"""Sessions whose models stay true while daemons are killed: each connects again, and
tells the daemon since when it may have missed something."""

import time

from daemon import granted
from histories import Relay, Server
from hostwatch import NODES, TREE, Client, Detached, HungUp, Lost, Refused
from library import IN_STEP, OUT_OF_STEP, LibraryClient

GONE = (HungUp, ConnectionError)
BUSY = BlockingIOError  # hostile clients have filled the socket's backlog
AWAY = 60.0  # longest time that a daemon may be away
_REALTIME_COARSE = 5


def now():
    """The moment at which a client says that it knows everything."""
    return time.clock_gettime_ns(_REALTIME_COARSE) - 10_000_000


def again(function, until=None):
    """The function's result, once the daemon is there for long enough."""
    end = time.monotonic() + AWAY
    while True:
        try:
            return function()
        except (*GONE, BUSY):
            if time.monotonic() > end:
                raise AssertionError(f"no daemon in {AWAY} s") from None
            time.sleep(0.02)
        except Refused:
            if until is None or not until():
                raise
            time.sleep(0.02)


def connect(path, root, mode, **fields):
    """A granted session on a directory, or on a share when `root` is bytes."""
    return granted(Client(path), root, mode, **fields)


class Session:
    """What both kinds of session by the strict client have."""

    mode = None

    def __init__(self, path, share, **fields):
        self.path = path
        self.share = share
        self.fields = fields
        self.disconnects = 0
        self.earlier_losses = 0
        self.client = None
        self.model = None
        self.begin()

    def begin(self):
        def one():
            self.client = connect(self.path, self.share, self.mode, **self.fields)
            try:
                self.model = self.make()
            except BaseException:
                self.close()
                raise
        again(one)

    def gone(self):
        """The connection has ended; without a word, or it was no accident."""
        assert not any(isinstance(one, Detached) for one in self.client.inbox), "detached"
        self.disconnects += 1
        self.client.close()
        again(self.connect_again)

    def receive(self, follows):
        """Takes one packet, which must be there."""
        try:
            self.client.receive()
            if follows:
                self.model.apply_all(self.client.take())
        except GONE:
            self.gone()

    def check(self):
        while True:
            try:
                moment = now()
                wrong = self.model.check()
                self.known = moment
                return wrong
            except GONE:
                self.gone()

    @property
    def losses(self):
        return self.earlier_losses + sum(isinstance(one, Lost) for one in self.model.history)

    def fileno(self):
        return self.client.fileno()

    def close(self):
        self.client.close()


class TreeSession(Session):
    mode = TREE

    def make(self):
        return Relay(self.client, self.share)

    def connect_again(self):
        """Nothing is known any more: the share is read again."""
        client = connect(self.path, self.share, self.mode, **self.fields)
        self.client = client
        try:
            model = Relay(client, self.share)
        except BaseException:
            client.close()
            raise
        self.earlier_losses = self.losses
        self.model = model


class PatientServer(Server):
    """A server that knows which directories it has yet to look through when its
    connection ends meanwhile."""

    def __init__(self, client, path):
        self.to_read = set()
        super().__init__(client, path)

    def _send(self, batch, fds):
        new = super()._send(batch, fds)
        self.to_read.update(new)
        return new

    def read(self, directory):
        self.to_read.add(directory)
        super().read(directory)

    def catch_up(self):
        for directory in list(self.to_read):
            super().read(directory)
        self.to_read.clear()


class NodesSession(Session):
    mode = NODES

    def make(self):
        self.known = now()
        return PatientServer(self.client, self.share)

    def connect_again(self):
        client = connect(self.path, self.share, self.mode, **self.fields)
        self.client = client
        try:
            self.model.reconnect(client, self.known)
            self.model.catch_up()
        except BaseException:
            client.close()
            raise

    def check(self):
        wrong = super().check()
        # All of it has been looked through: nothing was cut off since.
        self.model.to_read.clear()
        return wrong

    def close(self):
        super().close()
        if self.model:
            self.model.close()


class LibrarySession:
    """A server that leaves all that to the C library."""

    def __init__(self, path, share):
        self.path = path
        self.share = share
        self.begin()

    def begin(self):
        def one():
            model = []
            self.client = LibraryClient(
                self.path, self.share,
                lambda since: model[0].register_again(since) if model else None)
            try:
                self.model = Server(self.client, self.share)
            except BaseException:
                self.client.close()
                raise
            model.append(self.model)
        again(one)

    def poll(self):
        """Takes what has come."""
        try:
            self.client.take(model=self.model)
        except ConnectionError:
            pass  # it connects again by itself

    def check(self):
        end = time.monotonic() + AWAY
        while True:
            marks = len(self.client.marks)
            try:
                wrong = self.model.check()
                if self._in_step() and marks == len(self.client.marks):
                    return wrong
            except ConnectionError:
                pass
            self._follow(0.05)
            if time.monotonic() > end:
                return f"the library is not in step in {AWAY} s"

    def _in_step(self):
        return not self.client.marks or self.client.marks[-1] == IN_STEP

    def _follow(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                event = self.client.next(left)
            except ConnectionError:
                continue
            one = event and self.client.notification(event)
            if one:
                self.model.apply_all([one])

    @property
    def disconnects(self):
        """Not told apart from losses: each is a way out of step."""
        return 0

    @property
    def losses(self):
        return self.client.marks.count(OUT_OF_STEP)

    def close(self):
        self.client.close()
        self.model.close()
