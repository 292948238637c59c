"""What becomes of memory that is freed, where blocks of it are as large as the weights of a network.

The C library of most Linux systems keeps freed blocks of up to 32 MiB for itself, once some have been freed, and what
is allocated between them keeps the system from getting them back: a process then holds twice what is in use.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from pyro_scale import tree
from pyro_scale.types import Position

LARGE = 2**22
"""Numbers of a position; and bytes of a block that goes back to the system when it is freed."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def give_back_freed(position: Position) -> None:
    """Has blocks of 4 MiB or more go back to the system when they are freed, if a position is large.

    In the whole process, from here on: glibc knows no other way. It leaves alone what the environment variables of
    glibc set, and other C libraries.
    """
    if tree.size(position) <= LARGE or {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGE)
        library.mallopt(M_TRIM_THRESHOLD, LARGE)
        library.malloc_trim(0)  # and what it has kept so far
