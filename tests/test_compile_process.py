"""Compilation in a process of its own: it may die, hang or be missing, and nobody waits for it at the end."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from thetadot.compile import Program, elsewhere, process
from thetadot.compile.elsewhere import compile_elsewhere
from thetadot.compile.kernels import is_supported
from thetadot.compile.process import Refused

X = jnp.arange(6.0).reshape(2, 3)
supported = pytest.mark.skipif(not is_supported(), reason="for XLA's compiler for CPUs in jaxlib 0.10 only")
pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="another process compiles for CPUs only")


def fn(x):
    return jnp.sort(jnp.tanh(x @ x.T), axis=0) @ jnp.linalg.qr(x)[0] @ x


@pytest.fixture
def children(monkeypatch):
    """Processes of this test's own."""
    children = process.Children()
    monkeypatch.setattr(process, "_children", children)
    yield children
    children.end()


@pytest.fixture
def worker(tmp_path, monkeypatch, children):
    """`worker(code)` is what the processes of this test run."""

    def replace(code):
        file = tmp_path / "worker.py"
        file.write_text(code)
        monkeypatch.setattr(process, "WORKER", file)

    del children
    return replace


DIES = """
import os, pickle, signal, sys
pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps({version!r}))
sys.stdout.flush()
pickle.load(sys.stdin.buffer)
print("F0000 external/xla/dies.cc:1] check failed", file=sys.stderr, flush=True)
{end}
"""
ENDS = {
    "abort": "os.abort()",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "refusal": "sys.stdout.buffer.write(pickle.dumps((None, 'UNIMPLEMENTED: this'))); sys.stdout.flush()",
    "noise": "sys.stdout.buffer.write(b'what is this'); sys.stdout.flush()",
}


@supported
@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_is_not_compiled_there_is_compiled_here(worker, end, capfd, caplog):
    worker(DIES.format(version=jaxlib.version.__version__, end=ENDS[end]))
    program = Program(fn, {}, in_few=True)
    with caplog.at_level("INFO", "thetadot"):
        for x in (X, X, X + 1):
            np.testing.assert_allclose(program(x), fn(x), rtol=1e-12)
    assert len(caplog.records) == 1  # not tried again
    assert capfd.readouterr() == ("", "")
    other = Program(lambda x: fn(x) + 1, {})
    other.prepare(X)
    np.testing.assert_allclose(other(X), fn(X) + 1, rtol=1e-12)


NO_WORKERS = {
    "ends": "raise SystemExit(1)",
    "another program": "print('>>> ')",
    "another jaxlib": DIES.format(version="0.0.1", end=""),
}


@pytest.mark.parametrize("code", NO_WORKERS)
def test_where_no_process_can_be_started(worker, children, code):
    worker(NO_WORKERS[code])
    program = Program(fn, {}, in_few=True)
    np.testing.assert_allclose(program(X), fn(X), rtol=1e-12)
    program.prepare(X + 1)
    assert program.is_ready(X + 1)
    assert children.is_available == (not is_supported())


@pytest.mark.parametrize("executable", ["", None, "/no/such/python"])
def test_without_a_python_to_run(monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(process, "_children", process.Children())
    np.testing.assert_allclose(Program(fn, {}, in_few=True)(X), fn(X), rtol=1e-12)
    with pytest.raises(Refused):
        compile_elsewhere(jax.jit(fn).lower(X), {})


def test_one_that_died_or_left_is_replaced(children):
    def compile_one(n):
        return compile_elsewhere(jax.jit(lambda x: fn(x) + n).lower(X), {})(X)

    np.testing.assert_allclose(compile_one(1), fn(X) + 1, rtol=1e-12)
    (child,) = children._idle
    child.kill()
    np.testing.assert_allclose(compile_one(2), fn(X) + 2, rtol=1e-12)
    (other,) = children._idle
    assert other is not child
    compile_one(3)
    assert children._idle == [other] and not children._busy


def test_several_threads_at_once(children):
    program = Program(lambda x, n: fn(x) + n, {})

    def work(n):
        program.prepare(X, n % 3)
        return program(X, n % 3)

    with ThreadPoolExecutor(6) as pool:
        for n, found in enumerate(pool.map(work, range(12))):
            np.testing.assert_allclose(found, fn(X) + n % 3, rtol=1e-12)
    assert 1 <= len(children._idle) <= 2 and not children._busy


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_the_same_bits_as_here(dtype):
    x = X.astype(dtype)
    lowered = jax.jit(lambda key, x: (jax.random.normal(key, x.shape, x.dtype) + fn(x), key)).lower(
        jax.random.key(0), x
    )
    here, there = lowered.compile(), compile_elsewhere(jax.jit(fn).lower(x), {})
    np.testing.assert_array_equal(there(x), jax.jit(fn)(x))
    found, key = compile_elsewhere(lowered, {"xla_cpu_use_fusion_emitters": True})(jax.random.key(3), x)
    np.testing.assert_array_equal(found, here(jax.random.key(3), x)[0])
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and found.dtype == dtype


def test_what_was_compiled_is_found_on_disk(tmp_path, monkeypatch, children):
    """Whole, or not at all; and a loaded program is never saved again, which would lose its kernels."""
    monkeypatch.setattr(elsewhere, "config", Settings(tmp_path / "kept"))
    asked, compile_apart = [], elsewhere.compile_apart
    monkeypatch.setattr(elsewhere, "compile_apart", lambda *args: asked.append(args) or compile_apart(*args))

    def result(n=0.0):
        return compile_elsewhere(jax.jit(lambda x: fn(x) + n).lower(X), {})(X)

    for _ in range(3):
        np.testing.assert_allclose(result(), fn(X), rtol=1e-12)
    assert len(asked) == 1
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    np.testing.assert_allclose(result(), fn(X), rtol=1e-12)
    np.testing.assert_allclose(result(1.0), fn(X) + 1, rtol=1e-12)
    assert len(asked) == 3 and len(list((tmp_path / "kept").iterdir())) == 2


class Settings:
    jax_enable_compilation_cache = True
    jax_persistent_cache_min_compile_time_secs = 0.0

    def __init__(self, folder):
        self.jax_compilation_cache_dir = str(folder)


LONG = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins without
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
from thetadot.compile import Program, process
def long(x):
    for i in range({size}):
        x = jnp.sin(x @ x) + jnp.cos(x * (i + 1.0))
    return x
X = jnp.ones((7, 7))
program = Program(long, {{}}, in_few={in_few})
def wait_until_sent():
    while not any(child._process.poll() is None and child._is_ready for child in process._children._busy):
        time.sleep(0.01)
    time.sleep(0.2)
    print([child._process.pid for child in process._children._busy][0], flush=True)
{end}
"""


def run_long(end, size=1500, in_few=False, act=lambda process: None):
    """A process with a compilation that takes a while: its output, its seconds from the first line on, its end."""
    script = LONG.format(end=end, size=size, in_few=in_few)
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe, start_new_session=True) as running:
        first = running.stdout.readline() if running.stdout else ""
        began = time.monotonic()
        act(running)
        out, err = running.communicate(timeout=120)
        return first, out, err, time.monotonic() - began, running.returncode


def is_gone(pid, patience=3.0):
    """Whether a process ends soon."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_nobody_waits_for_a_compilation_at_the_end():
    pid, out, err, seconds, code = run_long("program.prepare(X); wait_until_sent()")
    assert (out, err, code) == ("", "", 0)
    assert seconds < 3 and is_gone(pid)  # two, and a busy machine


def test_nobody_waits_for_tracing_at_the_end():
    first, out, err, seconds, code = run_long(
        "program.prepare(X); time.sleep(0.5); print('go', flush=True)", size=10_000
    )
    assert (first, out, err, code) == ("go\n", "", "", 0)
    assert seconds < 3


@pytest.mark.parametrize("in_few", [pytest.param(True, marks=supported), False])
def test_a_thread_that_waits_ends_too(in_few):
    """One that Python would join before it ends."""
    prepare = "" if in_few else "program.prepare(X)"
    end = "threading.Thread(target=program, args=(X,)).start(); wait_until_sent()"
    pid, out, err, seconds, code = run_long(f"{prepare}\n{end}", in_few=in_few)
    assert (out, err, code) == ("", "", 0)
    assert seconds < 3 and is_gone(pid)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("in_few", [pytest.param(True, marks=supported), False])
def test_ctrl_c_gets_through(in_few):
    """To the whole group, as a terminal sends it; everything works afterwards."""
    end = """
if not program._in_few:
    program.prepare(X)
threading.Thread(target=wait_until_sent, daemon=True).start()
try:
    program(X)
except KeyboardInterrupt:
    print("interrupted", flush=True)
other = Program(lambda x: x + 1, {}, in_few=program._in_few)
other.prepare(X)
print(float(other(X)[0, 0]))
"""
    interrupt = lambda running: os.killpg(running.pid, signal.SIGINT)  # noqa: E731
    pid, out, err, seconds, code = run_long(end, in_few=in_few, act=interrupt)
    assert (out, err, code) == ("interrupted\n2.0\n", "", 0)
    assert seconds < 20 and is_gone(pid)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_it_dies_with_its_parent():
    pid, *_, code = run_long(
        "program.prepare(X); wait_until_sent(); time.sleep(60)", act=lambda running: running.kill()
    )
    assert code == -signal.SIGKILL and is_gone(pid)


def test_after_a_fork_it_has_processes_of_its_own(children):
    del children
    process._forget()
    assert not process._children._idle and process._children.is_available
    assert threading.current_thread() is threading.main_thread()
