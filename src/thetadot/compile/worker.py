"""Compiles programs for another process: where XLA aborts, this one ends and the other does not.

It is run as a script, not imported, and loads jaxlib alone, which takes a quarter of the time that JAX takes. What goes
through its pipes is pickled: first it is told where modules are found (`sys.path`) and answers with the version of
jaxlib, then it is sent one program after another, a pair of StableHLO and compile options, and answers with a pair
of an executable and an error, one of them `None`. It ends when its input does, also amid a compilation, and
when nothing has come for a while.
"""

import os
import pickle
import signal
import sys
from queue import Empty, SimpleQueue
from threading import Thread

_PATIENCE = 60.0  # seconds without a program


def main() -> None:
    """Serve until there is nothing to serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process
    _leave_no_core()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever XLA prints is no answer
    requests = sys.stdin.buffer

    def answer(value) -> None:
        pickle.dump(value, answers)
        answers.flush()

    sys.path[:] = pickle.load(requests)
    version, compile_one = _compiler()
    answer(version)
    programs = SimpleQueue()

    def read() -> None:
        try:
            while True:
                programs.put(pickle.load(requests))
        finally:  # the other process is gone
            os._exit(0)

    Thread(target=read, daemon=True).start()
    while True:
        try:
            program = programs.get(timeout=_PATIENCE)
        except Empty:
            os._exit(0)
        try:
            answer((compile_one(*program), None))
        except Exception as error:  # handed on
            answer((None, str(error)))


def _compiler():
    """The version of jaxlib, and a function that compiles for this machine."""
    import jaxlib.version
    from jaxlib import cpu_sparse, lapack, xla_client

    client = xla_client.make_cpu_client()
    for library in (lapack, cpu_sparse):  # as JAX does when it is imported
        for platform, targets in library.registrations().items():
            for name, target, api_version in targets:
                xla_client.register_custom_call_target(name, target, platform=platform, api_version=api_version)
    devices = {device.id: device for device in client.devices()}

    def compile_one(module: bytes, options: bytes, device_ids: list[int]) -> bytes:
        on = xla_client.DeviceList(tuple(devices[i] for i in device_ids))
        made = xla_client.CompileOptions.ParseFromString(options)
        return client.compile_and_load(module, executable_devices=on, compile_options=made).serialize()

    return jaxlib.version.__version__, compile_one


def _leave_no_core() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    main()
