"""JAX's compilation, except that XLA runs in another process, and a cache on disk for what comes from there."""

import hashlib
import io
import math
import os
import platform
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, final

import jax
import jaxlib.version

from .arguments import config
from .process import Refused, compile_apart, start


def compile_elsewhere(lowered: jax.stages.Lowered, options: dict[str, Any]) -> jax.stages.Compiled:
    """`lowered.compile`, in another process.

    Raises:
        Refused: if XLA refuses the program or dies of it, if there is no such process, or if this version of JAX
            does not let itself be helped.
    """
    try:
        from jax._src.config import persistent_cache_min_compile_time_secs as least_kept

        arguments: dict[str, Any] = lowered._lowering.compile_args  # type: ignore[attr-defined]
        client = arguments["backend"]
        keep_none = least_kept(math.inf)  # what was loaded once is incomplete if it is saved again
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        raise Refused("this version of JAX keeps its client for itself") from error
    arguments["backend"] = Elsewhere(client, config.jax_persistent_cache_min_compile_time_secs)
    try:
        with keep_none:
            return lowered.compile(compiler_options=options)
    finally:
        arguments["backend"] = client


def expect_one() -> None:
    """Let the other process start while a program is traced, unless the program may be on disk."""
    if not config.jax_compilation_cache_dir:
        start()


@final
class Elsewhere:
    """A client of XLA that has programs compiled in another process, and otherwise is the one that it is made of.

    JAX takes it for its own, so all that it does around a compilation stays as it is: which arguments it drops, how
    results are made, how a call is dispatched.

    Args:
        client: of the CPU.
        least_kept: seconds that a compilation takes if its result is worth a file.
    """

    def __init__(self, client: Any, least_kept: float):
        self._client, self._least_kept = client, least_kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def compile_and_load(self, module: Any, *, executable_devices: Any, compile_options: Any, **others: Any) -> Any:
        """The executable of a module, loaded."""
        if others:
            raise Refused(f"another process cannot know {', '.join(others)}")
        options = compile_options.SerializeAsString()
        ids = [device.id for device in executable_devices]
        file = self._file(module, options, ids)
        executable = _read(file)
        if executable is None:
            bytecode, began = io.BytesIO(), time.monotonic()
            module.operation.write_bytecode(bytecode)
            executable = compile_apart(bytecode.getvalue(), options, ids)
            if time.monotonic() - began >= self._least_kept:
                _write(file, executable)
        return self._client.deserialize_executable(executable, executable_devices, compile_options)

    def _file(self, module: Any, options: bytes, ids: list[int]) -> Path | None:
        """Where the executable is kept: in the folder in which JAX keeps its own, if it does."""
        folder = config.jax_compilation_cache_dir
        if not (folder and config.jax_enable_compilation_cache) or "://" in str(folder):
            return None
        text = module.operation.get_asm(enable_debug_info=False)
        key = hashlib.sha256(text.encode())
        for part in (options, *map(str, ids), self._client.platform_version, *_machine()):
            key.update(part if isinstance(part, bytes) else part.encode())
        return Path(folder) / f"thetadot-{key.hexdigest()}"


@cache
def _machine() -> tuple[str, ...]:
    """What code may depend on besides the program."""
    try:
        info = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        features = [line for line in info if line.startswith(("flags", "Features", "model name", "CPU part"))]
    except OSError:
        features = [platform.processor()]
    flags = os.environ.get("XLA_FLAGS", "")
    return jax.__version__, jaxlib.version.__version__, flags, platform.machine(), str(os.cpu_count()), *features


def _read(file: Path | None) -> bytes | None:
    """What was kept, if it is whole."""
    try:
        content = file.read_bytes() if file else b""
    except OSError:
        return None
    digest, executable = content[:32], content[32:]
    return executable if content and hashlib.sha256(executable).digest() == digest else None


def _write(file: Path | None, executable: bytes) -> None:
    """Keep it, whole or not at all."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            partial = Path(folder) / file.name
            partial.write_bytes(hashlib.sha256(executable).digest() + executable)
            partial.replace(file)
    except OSError:  # a full or a protected disk: then it is compiled again
        pass
