"""Files that later processes find again: native code, and how long compilations took."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path


def kept_by(described: object, suffix: str) -> Path | None:
    """The file of what is kept from one process to the next, by all that it depends on; None without a folder."""
    folder = cache_folder()
    key = repr((_source(), described))
    return folder and folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{suffix}"


def cache_folder() -> Path | None:
    """A folder of ours within that of Inductor, which is not imported for it; None without a name for it."""
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not chosen:
        try:
            user = re.sub(r"\W", "_", getpass.getuser())
        except (OSError, KeyError, ImportError):  # a user without a name
            return None
        chosen = f"{tempfile.gettempdir()}/torchinductor_{user}"
    return Path(chosen) / "pyro_scale"


def write(path: Path, text: str) -> None:
    """Writes a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


@cache
def _source() -> str:
    """Of this package: what another version of it has kept is not for this one."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
