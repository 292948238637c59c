"""Standard normals in pieces, of which the next are drawn in a second thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor


class Pieces:
    """The numbers of a generator, piece by piece, in memory that is used again.

    Args:
        generator: a CPU's.
        dtype: of the numbers.
        sizes: of the pieces, over and over.
        room: how many are in memory, the one handed out last and those drawn ahead; with 1 there is no thread.
    """

    def __init__(self, generator: torch.Generator, dtype: torch.dtype, sizes: Sequence[int], room: int) -> None:
        self.generator = generator
        self.sizes = sizes
        self.slots = [torch.empty(max(sizes), dtype=dtype, device="cpu") for _ in range(room)]
        self.asked = 0
        self.thread: ThreadPoolExecutor | None = None
        self.waiting: deque[Future[Tensor]] = deque()
        self.before: deque[Tensor] = deque()  # the generator's states before each that waits, once it is drawn

    def next(self) -> Tensor:
        """The next piece; the call after this one may write to it."""
        if len(self.slots) == 1:
            self.asked += 1
            return self._drawn(self.asked - 1)
        if self.thread is None:
            self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pyro_scale.pieces")
        while len(self.waiting) < len(self.slots):
            self.waiting.append(self.thread.submit(self._drawn_ahead, self.asked))
            self.asked += 1
        try:
            piece = self.waiting[0].result()
        except BaseException:
            self.forget()
            raise
        self.waiting.popleft()
        self.before.popleft()
        return piece

    def state(self) -> Tensor:
        """That of the generator after the pieces handed out."""
        if not self.waiting:
            return self.generator.get_state()
        wait([self.waiting[0]])
        return self.before[0]

    def forget(self) -> None:
        """Waits for the thread, and goes back to where the generator was before what is drawn ahead."""
        if self.waiting:
            wait(self.waiting)
            self.generator.set_state(self.before[0])
            self.asked -= len(self.waiting)
            self.waiting.clear()
            self.before.clear()

    def close(self) -> None:
        """Ends the thread; who asks for a piece again starts another."""
        self.forget()
        if self.thread is not None:
            self.thread.shutdown()
            self.thread = None

    def _drawn_ahead(self, number: int) -> Tensor:
        self.before.append(self.generator.get_state())
        return self._drawn(number)

    def _drawn(self, number: int) -> Tensor:
        piece = self.slots[number % len(self.slots)][: self.sizes[number % len(self.sizes)]]
        return piece.normal_(generator=self.generator)
