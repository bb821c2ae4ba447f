"""A TCP proxy that injects faults into real connections, without root.

`ChaosProxy("127.0.0.2", ports, seed)` listens at another address of the loopback with
the same ports as a server at 127.0.0.1, so that nothing on the wire is rewritten: a
peer that connects to the proxy's address finds the ports of `Welcome` there as well.
Each port is a `Link` with its own faults (on Linux, all of 127.0.0.0/8 is loopback).
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal, NamedTuple

from asyn2f.protocol.channels import Channel
from tests.support.patience import PATIENCE_S

_PIECE_BYTES = 65_536
_QUEUED_PIECES = 8  # per direction of a connection; more is not read


class Toxics(NamedTuple):
    """The faults of a link, in both directions, until they are changed."""

    stalled: bool = False  # holds everything, new connections too
    delay_s: float = 0.0
    slice_bytes: int = 0  # the maximum size of a random piece; 0 = unchanged
    bytes_per_s: float = 0.0  # per direction of a connection; 0 = no limit
    limit_bytes: int = -1  # upwards, until `at_limit`; -1 = no limit
    at_limit: Literal["cut", "stall"] = "cut"


class _Cut(Exception):
    """A connection has reached its byte limit."""


class Link:
    """One port of the proxy, and the connections through it; for any thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        upstream: tuple[str, int],
        seed: str,
    ) -> None:
        self.toxics = Toxics()
        self.up_bytes = self.down_bytes = self.connections = self.cuts = 0
        self.limit_reached = threading.Event()
        self._loop = loop
        self._here = (host, upstream[1])
        self._listener = _listen(*self._here)
        self._upstream = upstream
        self._random = random.Random(seed)
        self._open: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}
        self._left_open: list[socket.socket] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._trouble: asyncio.Task[None] | None = None

    # ------------------------------------------------------------- faults

    def set(self, **changes: Any) -> None:
        """Changes these toxics and keeps the others."""
        self._call(lambda: self._set(changes))

    def cut(self) -> None:
        """Ends all connections with RST; new ones are accepted."""
        self._call(self._cut)

    def half_open(self) -> None:
        """Ends all connections on the server's side; the peer does not notice."""
        self._call(self._half_open)

    def refuse(self, refuses: bool) -> None:
        """Behaves as if the server were down: connections end and are refused."""
        self._call(lambda: self._refuse(refuses))

    def misbehave(
        self, cut_s: tuple[float, float], stall_s: tuple[float, float]
    ) -> None:
        """Cuts at random intervals, or, one time in five, stalls for a random time."""
        self._call(lambda: self._start_trouble(cut_s, stall_s))

    def calm(self) -> None:
        """Ends all faults; open connections resume."""
        self._call(self._calm)

    def _call(self, action: Callable[[], None]) -> None:
        """Runs an action on the loop's thread and waits for it."""

        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10.0)

    def _set(self, changes: dict[str, Any]) -> None:
        self.toxics = self.toxics._replace(**changes)
        if self.toxics.stalled:
            self._flowing.clear()
        else:
            self._flowing.set()

    def _cut(self) -> None:
        self.cuts += 1
        for task, ends in self._open.items():
            for end in ends:
                _reset_on_close(end)
            task.cancel()

    def _refuse(self, refuses: bool) -> None:
        self._serving.cancel()
        if refuses:
            self._cut()
            self._listener.close()
        else:
            self._listener = _listen(*self._here)
            self._serving = self._loop.create_task(self._serve())

    def _half_open(self) -> None:
        for task, (below, _) in self._open.items():
            self._left_open.append(below.dup())
            task.cancel()

    def _start_trouble(
        self, cut_s: tuple[float, float], stall_s: tuple[float, float]
    ) -> None:
        async def trouble() -> None:
            while True:
                await asyncio.sleep(self._random.uniform(*cut_s))
                if self._random.random() < 0.2:
                    self._set({"stalled": True})
                    await asyncio.sleep(self._random.uniform(*stall_s))
                    self._set({"stalled": False})
                else:
                    self._cut()

        self._trouble = self._loop.create_task(trouble())

    def _calm(self) -> None:
        if self._trouble is not None:
            self._trouble.cancel()
        self._set(Toxics()._asdict())

    # ------------------------------------------------------------- carrying

    def start(self) -> None:
        """Accepts connections; on the loop's thread."""
        self._serving = self._loop.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            below, _ = await self._loop.sock_accept(self._listener)
            self.connections += 1
            above = socket.socket(socket.AF_INET)
            task = self._loop.create_task(self._carry(below, above))
            self._open[task] = (below, above)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        for end in self._open.pop(task):
            end.close()

    async def _carry(self, below: socket.socket, above: socket.socket) -> None:
        for end in (below, above):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._flowing.wait()
        with contextlib.suppress(OSError, _Cut):  # one side has closed: both do
            await self._loop.sock_connect(above, self._upstream)
            await _first_to_end(
                self._pass_on(below, above, True), self._pass_on(above, below, False)
            )

    async def _pass_on(
        self, source: socket.socket, sink: socket.socket, upwards: bool
    ) -> None:
        """Carries bytes one way until their source ends."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_PIECES)

        async def take() -> None:
            while True:
                await self._flowing.wait()
                data = await self._loop.sock_recv(source, _PIECE_BYTES)
                await waiting.put((self._loop.time() + self.toxics.delay_s, data))
                if not data:
                    await asyncio.Event().wait()  # `give` handles the end

        async def give() -> None:
            while (item := await waiting.get())[1]:
                await asyncio.sleep(item[0] - self._loop.time())
                for piece in self._pieces(item[1]):
                    await self._flowing.wait()
                    await self._let_pass(sink, piece, upwards)

        await _first_to_end(take(), give())

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            most = self.toxics.slice_bytes
            size = self._random.randint(1, most) if most else len(data)
            yield data[:size]
            data = data[size:]

    async def _let_pass(self, sink: socket.socket, piece: bytes, upwards: bool) -> None:
        toxics = self.toxics
        if upwards and 0 <= toxics.limit_bytes <= len(piece):
            await self._loop.sock_sendall(sink, piece[: toxics.limit_bytes])
            self.up_bytes += toxics.limit_bytes
            stalls = toxics.at_limit == "stall"
            self._set({"limit_bytes": -1, "stalled": stalls})
            self.limit_reached.set()
            if not stalls:
                self._cut()
                raise _Cut
            piece = piece[toxics.limit_bytes :]
            await self._flowing.wait()
        elif upwards and toxics.limit_bytes >= 0:
            left = toxics.limit_bytes - len(piece)
            self.toxics = toxics._replace(limit_bytes=left)
        await self._loop.sock_sendall(sink, piece)
        if upwards:
            self.up_bytes += len(piece)
        else:
            self.down_bytes += len(piece)
        if toxics.bytes_per_s:
            await asyncio.sleep(len(piece) / toxics.bytes_per_s)

    async def close(self) -> None:
        """Closes everything."""
        self._calm()
        tasks = [self._serving, *self._open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (self._listener, *self._left_open):
            end.close()


class ChaosProxy:
    """A proxy between one peer and its server."""

    def __init__(
        self,
        host: str,
        ports: tuple[int, int, int],
        seed: int = 0,
        upstream: str = "127.0.0.1",
    ) -> None:
        """
        Args:
          host: where it listens, such as 127.0.0.2.
          ports: the server's, of CONTROL, MODEL and UPDATE; the proxy has the same.
          seed: of all random choices.
          upstream: the server's host.
        """
        self.address = f"tcp://{host}:{ports[0]}"
        self._loop = asyncio.new_event_loop()
        self.links = {
            channel: Link(self._loop, host, (upstream, port), f"{seed} {channel}")
            for channel, port in zip(Channel, ports, strict=True)
        }
        self.control, self.model, self.update = self.links.values()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)
        self._thread.start()

    def each(self) -> list[Link]:
        """The links of all channels."""
        return list(self.links.values())

    def set(self, **changes: Any) -> None:
        """Changes the toxics of all links."""
        for link in self.each():
            link.set(**changes)

    def calm(self) -> None:
        """Ends the faults of all links."""
        if self._thread.is_alive():
            for link in self.each():
                link.calm()

    def close(self) -> None:
        """Closes everything; idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        for link in self.each():
            link.start()
        self._loop.run_until_complete(self._until_closed())
        self._loop.close()

    async def _until_closed(self) -> None:
        await self._closing.wait()
        for link in self.each():
            await link.close()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _reset_on_close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Waits for the first coroutine to end or fail, and cancels the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
