"""Which children run, and in what order do they end? None may die before it is asked to."""

import asyncio
from collections.abc import Sequence

from sidecar.process import Child, Command, Exit, Sink


class Fleet:
    """The children of one run."""

    def __init__(self, sink: Sink, *, stop_order: Sequence[str]) -> None:
        self.died: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        """The first child that ended without being asked to."""
        self._sink = sink
        self._stop_order = stop_order
        self._children: dict[str, Child] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._stopping = False

    async def launch(self, command: Command) -> Child:
        """Start a child that is to run until `stop`; raises StartError."""
        child = await Child.start(command, self._sink)
        self._children[command.name] = child
        self._watches.append(asyncio.create_task(self._watch(child)))
        return child

    async def stop(self) -> None:
        """End all children, one after the other."""
        self._stopping = True
        for name in self._stop_order:
            if child := self._children.get(name):
                await child.stop()
        await asyncio.gather(*self._watches)

    def kill(self) -> None:
        """End all children at once, by force."""
        self._stopping = True
        for child in self._children.values():
            child.kill()

    async def _watch(self, child: Child) -> None:
        ended = await child.wait()
        if not self._stopping and not self.died.done():
            self.died.set_result(ended)
