"""What cannot be run is refused in one sentence that names the argument; a user's own exceptions come through."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thetadot as td
from flows import BOWL, QUARTIC, at, first, scalar_flows
from test_flow_outcomes import unchecked  # noqa: F401  (a fixture)

library: Any = td  # what is wrong by its type is what these tests are about

pytestmark = pytest.mark.usefixtures("unchecked")


def total(params, data):
    return jnp.sum(jnp.square(params["x"]))


def squared(transform):
    return td.Problem(lambda params, data: transform(total(params, data)))


def sliced(params, data):
    return jnp.sum(params["x"][: data["n"]])


def branching(params, data):
    return total(params, data) if data["n"] > 1 else 0.0


def empty(params, data):
    return jnp.sum(params["x"])


NETWORK = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
SCALAR = r"`loss\(params, data\)` must return "
CROSSING = r"`crossings\['a'\]` must be \(observable, level\)"
REFUSED = {
    "activation as leaf": ({"params0": NETWORK}, r"`params0` must hold arrays only; it holds a .*`eqx\.partition"),
    "text as leaf": ({"params0": {"x": jnp.ones(2), "y": "text"}}, r"`params0` must hold arrays only; it holds a str"),
    "empty arrays": ({"problem": td.Problem(empty), "params0": {"x": jnp.ones((0, 3))}}, r"`params0` holds no numbers"),
    "no problem": ({"problem": total}, r"`problem` must be a `thetadot\.Problem\(loss, data\)`; got a function"),
    "float32 loss": (
        {"problem": squared(lambda x: x.astype("float32"))},
        SCALAR + "a real number .* it returned float32",
    ),
    "integer loss": ({"problem": squared(lambda x: x.astype(int))}, SCALAR + "a real number .* it returned int64"),
    "complex loss": (
        {"problem": squared(lambda x: x.astype(complex))},
        SCALAR + "a real number .* returned complex128",
    ),
    "no loss": ({"problem": squared(lambda x: None)}, SCALAR + "one scalar array; it returned nothing"),
    "slice from data": ({"problem": td.Problem(sliced, {"n": 2})}, r"the loss asks for the value of an array .*`data`"),
    "branch on data": ({"problem": td.Problem(branching, {"n": 2})}, r"the loss asks for the value .*`jax\.lax\.cond`"),
    "t1 text": ({"t1": "1"}, r"`gradient_flow\(t1=\.\.\.\)` must be a positive, finite time; got 1"),
    "t1 None": ({"t1": None}, r"`gradient_flow\(t1=\.\.\.\)` must be a positive, finite time; got None"),
    "t1 array": ({"t1": jnp.ones(2)}, r"`gradient_flow\(t1=\.\.\.\)` must be a positive, finite time; got \[1\. 1\.\]"),
    "rtol None": ({"rtol": None}, r"`rtol` must lie in \(0, 0\.1\]; got None"),
    "rtol array": ({"rtol": np.ones(2)}, r"`rtol` must lie in"),
    "max_steps None": (
        {"max_steps": None},
        r"`gradient_flow\(max_steps=\.\.\.\)` must be a whole number, at least 0; got None",
    ),
    "max_steps half": ({"max_steps": 1.5}, r"must be a whole number, at least 0; got 1\.5"),
    "max_steps negative": ({"max_steps": -1}, r"must be a whole number, at least 0; got -1"),
    "ts text": ({"ts": ["a"]}, r"`gradient_flow\(ts=\.\.\.\)` must be a non-empty list of finite times"),
    "crossings list": ({"crossings": [("loss", 1.0)]}, r"`gradient_flow\(crossings=\.\.\.\)` must be a dictionary"),
    "crossing number": ({"crossings": {"a": 0.5}}, CROSSING + ".* got 0.5"),
    "crossing long": ({"crossings": {"a": ("loss", 1.0, "up", 1)}}, CROSSING),
    "crossing level text": ({"crossings": {"a": ("loss", "one")}}, CROSSING),
    "crossing level array": ({"crossings": {"a": ("loss", np.ones(2))}}, CROSSING),
    "crossing of a list": ({"crossings": {"a": (["loss"], 1.0)}}, CROSSING),
    "crossing way": ({"crossings": {"a": ("loss", 1.0, ["up"])}}, CROSSING),
    "stop list": ({"stop": ["a"], "crossings": {"a": ("loss", 1.0)}}, r"`stop`=\['a'\] must name one of the crossings"),
    "observables list": ({"observables": [first]}, r"`gradient_flow\(observables=\.\.\.\)` must be a dictionary"),
    "observable number": (
        {"observables": {"a": 3.0}},
        r"observables=\.\.\.\)`: 'a' must be a function `fn\(params, data\)",
    ),
    "observable of one": ({"observables": {"a": lambda params: 1.0}}, r"'a' must be a function `fn\(params, data\)"),
    "observable None": (
        {"observables": {"a": lambda p, d: None}},
        r"`observables\['a'\]` must return one array; .* nothing",
    ),
    "observable dict": (
        {"observables": {"a": lambda p, d: p}},
        r"`observables\['a'\]` must return one array; .* a dict",
    ),
    "observable text": (
        {"observables": {"a": lambda p, d: "x"}},
        r"`observables\['a'\]` must return one array; .* a str",
    ),
    "unsavable name": ({"observables": {"zarr.json": first}}, r"may not be called 'zarr\.json': no file"),
    "half precision": (
        {"params0": {"x": jnp.ones(2, jnp.float16)}},
        r"`params0` is float16, in which .*cast it to float64",
    ),
    "bfloat16": ({"params0": {"x": jnp.ones(2, jnp.bfloat16)}}, r"`params0` is bfloat16, in which rounding is larger"),
    "max_steps endless": ({"max_steps": np.inf}, r"must be a whole number, at least 0; got inf"),
    "two fields": ({"solver": dfx.KenCarp5()}, r"KenCarp5 wants the field in two parts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_sentence(case):
    changes, sentence = REFUSED[case]
    standard = {"problem": scalar_flows(QUARTIC, BOWL), "params0": at(1.0, 1.0), "t1": 1.0}
    with pytest.raises(ValueError, match=sentence) as caught:
        td.gradient_flow(**{**standard, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (
            lambda: library.Problem(lambda params: 0.0),
            r"`Problem\(loss=\.\.\.\)` must be a function `loss\(params, data\)",
        ),
        (
            lambda: library.Problem(total, {"name": "text"}),
            r"`Problem\(data=\.\.\.\)` must hold arrays only; it holds a str",
        ),
        (
            lambda: library.Problem(total, {"f": jnp.tanh}),
            r"`Problem\(data=\.\.\.\)` must hold arrays only; it holds a PjitF",
        ),
        (lambda: library.Problem(total, None, {"c": 3.0}), r"`Problem\(conserved=\.\.\.\)`: 'c' must be a function"),
        (lambda: library.blow_up(library.Problem(total), at(1.0), rtol=None), r"`rtol` must lie in"),
        (
            lambda: library.blow_up(library.Problem(total), at(1.0), max_steps=None),
            r"max_steps=\.\.\.\)` must be a whole number, at least 1; got None",
        ),
        (lambda: library.find_stages(None, margin="a"), r"`find_stages\(margin=\.\.\.\)` must lie in .* got a"),
        (lambda: library.find_stages(None, margin=[0.1, 0.2]), r"`find_stages\(margin=\.\.\.\)` must lie in"),
        (
            lambda: library.find_stages(None, prominence=None),
            r"`find_stages\(prominence=\.\.\.\)` must be a positive, finite number; got None",
        ),
        (
            lambda: library.blow_up(library.Problem(total), at(1.0), max_steps=np.inf),
            r"max_steps=\.\.\.\)` must be a whole number, at least 1; got inf",
        ),
        (
            lambda: library.descent(library.Problem(total), at(1.0), np.nan, 0.1),
            r"`descent\(num_steps=\.\.\.\)` must be a whole number, at least 1; got nan",
        ),
        (
            lambda: library.crossing_times(library.Problem(total), at(1.0), {"a": ("loss", 0.1)}, 1.0, rtol="a"),
            r"`rtol` must lie in \(0, 0\.1\]; got a",
        ),
        (
            lambda: library.crossing_times(library.Problem(total), at(1.0), {"a": ("loss", 0.1)}, [1.0]),
            r"`gradient_flow\(t1=\.\.\.\)` must be a positive, finite time; got \[1\.0\]",
        ),
        (
            lambda: library.scan(lambda x: None, {"x": [1.0]}, "a", {}),
            r"`scan\(t1=\.\.\.\)` must be a positive, finite time or a function of the point; got a",
        ),
        (
            lambda: library.scan(lambda x: None, {"x": [1.0]}, 1.0, {}, max_steps=None),
            r"`scan\(max_steps=\.\.\.\)` must be a whole number, at least 1; got None",
        ),
        (
            lambda: library.descent(library.Problem(total), at(1.0), 3, "a"),
            r"learning_rate=\.\.\.\)` must be a positive, finite",
        ),
        (
            lambda: library.crossing_times(library.Problem(total), {}, {"a": ("loss", 1.0)}, 1.0),
            r"`params0` holds no arrays",
        ),
    ],
)
def test_other_functions_refuse_in_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


CROSSINGS = r"`measure\['a'\]` must be \(observable, level\), .* got "
SCANS = {
    "store number": (
        {"store": 3},
        r"`scan\(store=\.\.\.\)` must be the path of a folder, as a text or a `Path`; got 3\.",
    ),
    "store bytes": ({"store": b"a"}, r"`scan\(store=\.\.\.\)` must be the path of a folder"),
    "store nowhere": ({"store": ""}, r"`scan\(store=\.\.\.\)` must be the path of a folder"),
    "make None": ({"make": None}, r"`scan\(make=\.\.\.\)` must be a function `make\(\*\*point\) -> .* got None"),
    "make text": ({"make": "make"}, r"`scan\(make=\.\.\.\)` must be a function .* got 'make'"),
    "grid number": ({"grid": 3}, r"`scan\(grid=\.\.\.\)` needs at least one axis"),
    "measure number": ({"measure": 3}, r"`scan\(measure=\.\.\.\)` must be a dict of names; got int"),
    "crossing number": ({"measure": {"a": 3}}, CROSSINGS + "3"),
    "crossing None": ({"measure": {"a": None}}, CROSSINGS + "None"),
    "crossing text": ({"measure": {"a": "ab"}}, CROSSINGS + "'ab'"),
    "crossing way": ({"measure": {"a": ("loss", 1.0, ["up"])}}, CROSSINGS),
    "crossing of a list": ({"measure": {"a": (["loss"], 1.0)}}, r"`measure\['a'\]` watches \['loss'\], not among"),
    "observables number": ({"observables": 3}, r"`scan\(observables=\.\.\.\)` must be a dictionary"),
    "observable number": ({"observables": {"a": 3}}, r"`scan\(observables=\.\.\.\)`: 'a' must be a function"),
    "observable called 3": ({"observables": {3: first}}, r"`scan\(observables=\.\.\.\)` must be a dictionary"),
    "engine list": ({"engine": ["threads"]}, r"unknown engine \['threads'\]: choose one of auto, threads"),
    "errors text": ({"errors": "no"}, r"`scan\(errors=\.\.\.\)` must be True or False; got 'no'"),
    "stop list": ({"stop": ["a"]}, r"`stop`=\['a'\] must name a crossing in `measure`; there is a\."),
    "changed list": (
        {"changed": ["redo"]},
        r"`scan\(changed=\.\.\.\)` must be one of refuse, redo, trust; got \['redo'\]",
    ),
    "damaged number": ({"damaged": 3}, r"`scan\(damaged=\.\.\.\)` must be one of refuse, redo; got 3"),
}


@pytest.mark.parametrize("case", SCANS)
def test_a_scan_refuses_in_one_sentence_and_writes_nothing(case, tmp_path):
    changes, sentence = SCANS[case]
    standard = {"make": scalar_flows, "grid": {"x": [1.0]}, "t1": 1.0, "measure": {"a": ("loss", 1.0)}}
    with pytest.raises(ValueError, match=sentence) as caught:
        library.scan(**{**standard, "store": tmp_path / "scan.zarr", **changes})
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("place", [3, None, [1], b"run", True, "", "a\0b"])
def test_what_is_no_path_is_refused_in_one_sentence(place):
    traj = td.gradient_flow(scalar_flows(BOWL, QUARTIC), at(1.0, 1.0), 0.1, solver="tsit5")
    for name, use in (("save", traj.save), ("load", library.load)):
        with pytest.raises(ValueError, match=rf"`{name}\(path=\.\.\.\)` must be the path of a folder"):
            use(place)


def test_a_place_in_a_file_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    traj, place = (
        td.gradient_flow(scalar_flows(BOWL, QUARTIC), at(1.0, 1.0), 0.1, solver="tsit5"),
        tmp_path / "file" / "a",
    )
    with pytest.raises(NotADirectoryError, match="file` is a file, or is in one: give another place"):
        traj.save(place)
    with pytest.raises(OSError, match=r"cannot make the store `.*a`: `.*file` is a file, or is in one: give another"):
        library.scan(scalar_flows, {"x": [1.0]}, 1.0, {}, store=place)
    with pytest.raises(ValueError, match="is not a saved trajectory: no such folder"):
        td.load(place)
    assert (tmp_path / "file").read_text() == "mine"


class OwnError(Exception):
    """Raised by a user's function."""


def raising(error):
    def fn(*args):
        raise error

    return lambda params, data: fn()


@pytest.mark.parametrize("error", [OwnError("mine"), TypeError("mine"), ValueError("mine"), IndexError("mine")])
def test_what_a_function_of_the_user_raises_comes_through(error):
    watched = {"a": raising(error)}
    for problem, observables in [(td.Problem(raising(error)), {}), (td.Problem(total), watched)]:
        with pytest.raises(type(error), match="mine") as caught:
            td.gradient_flow(problem, at(1.0), 1.0, observables=observables)
        assert caught.value is error


def test_what_is_right_is_taken():
    """Numbers of NumPy and JAX, lists as observables and crossings, an Equinox module by its arrays."""
    arrays, rest = eqx.partition(NETWORK, eqx.is_inexact_array)

    def output(params, data):
        return jnp.sum(jnp.square(eqx.combine(params, rest)(data)))

    options = {"observables": {"both": lambda p, d: [1.0, 2.0]}, "crossings": {"a": ["loss", np.float64(1e-3), "down"]}}
    traj = library.gradient_flow(
        td.Problem(output, jnp.ones(2)),
        arrays,
        jnp.array(1.0),
        rtol=np.float64(1e-4),
        max_steps=np.int64(100),
        **options,
    )
    assert traj.status == "done" and traj["both"].shape == (traj.ts.size, 2)


def decay(adjoint):
    """½|y(1)|² of ẏ = -x y from y(0) = 1, whose ODE is solved inside the loss: L = ½ e^(-2x) for each x."""
    term = dfx.ODETerm(lambda t, y, x: -x * y)
    options = {"stepsize_controller": dfx.PIDController(rtol=1e-9, atol=1e-9), "adjoint": adjoint, "max_steps": 256}

    def loss(params, data):
        x = params["x"]
        with jax.numpy_dtype_promotion("standard"):
            found = dfx.diffeqsolve(term, dfx.Tsit5(), 0.0, 1.0, 0.1, jnp.ones_like(x), args=x, **options)
        return 0.5 * jnp.sum(jnp.square(jnp.asarray(found.ys)[0]))

    return td.Problem(loss)


def test_a_loss_that_cannot_be_differentiated_forward_says_what_to_do():
    """x' = e^(-2x): x = log(1 + 2t)/2 from 0."""
    start = at(0.0)
    advice = r"in forward mode.*`adjoint=diffrax\.DirectAdjoint\(\)`.*`solver=\"tsit5\"`"
    with pytest.raises(ValueError, match=advice) as caught:
        td.gradient_flow(decay(dfx.RecursiveCheckpointAdjoint()), start, 1.0)
    assert "\n" not in str(caught.value)
    for adjoint, solver in [(dfx.RecursiveCheckpointAdjoint(), "tsit5"), (dfx.DirectAdjoint(), "auto")]:
        traj = td.gradient_flow(decay(adjoint), start, 1.0, solver=solver)
        np.testing.assert_allclose(traj.params1["x"], [np.log(3) / 2], rtol=1e-5)


def test_float32_parameters_of_numpy_are_to_be_cast():
    params0 = {"x": np.ones(2, "float32")}
    with pytest.raises(ValueError, match=r"below what float32 parameters resolve .*: cast them to float64"):
        td.gradient_flow(td.Problem(total), params0, 1.0)
    assert td.gradient_flow(td.Problem(total), {"x": params0["x"].astype(float)}, 1.0).status == "done"


def test_the_smallest_rtol_of_errors_is_said_in_units_of_the_argument():
    """Float32 resolves 1.2e-4, and errors come from a solution that is a hundred times tighter."""
    params0 = {"x": np.ones(2, "float32")}
    sentence = r"`rtol`=0\.001 is below what float32 parameters resolve \(it must be at least 1\.2e-02, as errors come"
    with pytest.raises(ValueError, match=sentence):
        td.crossing_times(td.Problem(total), params0, {"half": ("loss", 1.0)}, 1.0, rtol=1e-3)
    found = td.crossing_times(td.Problem(total), params0, {"half": ("loss", 1.0)}, 1.0, rtol=0.02)
    assert found["half"].value == pytest.approx(np.log(2) / 4, abs=found["half"].error + 1e-3)
