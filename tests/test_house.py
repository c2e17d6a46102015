"""The house stays in order: floors, who may import or do what, sizes, docstrings, `__all__`."""

import ast
import importlib
import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "jrl").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
ENTRANCE = "jrl"
"""The package's own `__init__` stands outside the house: it may show any room."""

FLOORS = {
    "types": 0,
    "tree": 0,
    "rng": 0,
    "losses": 1,
    "distributions": 1,
    "train": 1,
    "replay": 1,
    "metrics": 1,
    "sharding": 1,
    "envs": 2,
    "networks": 2,
    "checkpoint": 2,
    "rollout": 3,
    "tabular": 3,
    "planning": 3,
    "lm": 3,
    "data": 3,
    "algos": 4,
    "loop": 5,
    "streams": 5,
    "async_rl": 5,
    "experiment": 5,
    "grid": 5,
    "progress": 5,
    "run_directory": 5,
    "plot": 6,
    "video": 6,
    "generate": 6,
    "cli": 6,
    "__main__": 7,
}

NEIGHBOURS = {
    ("tree", "types"): "types is the ground: names for annotations, no code",
    ("rng", "types"): "the same",
    ("train", "metrics"): "the step and its epochs sum metrics",
    ("experiment", "loop"): "an experiment is a loop with a run directory and progress",
    ("experiment", "grid"): "its settings",
    ("experiment", "progress"): "the same",
    ("experiment", "run_directory"): "the same",
    ("streams", "progress"): "what it shows",
    ("streams", "run_directory"): "its files",
    ("cli", "plot"): "`jrl plot` is a command; imported when it is called",
    ("cli", "video"): "the same",
    ("cli", "generate"): "the same",
}
"""Rooms that import a room of their own floor, and why that makes no knot."""

SPEAKERS = 5
"""The first floor whose modules may print, open files and read clocks."""

WRITERS = {
    "checkpoint": "writes when it is told to",
    "envs.mujoco.native": "keeps the library that it compiles",
    "lm.huggingface": "saves a model when it is told to",
    "lm.safetensors_files": "the same",
}
READERS = {
    "data": "data sets",
    "lm": "weights",
    "envs.mujoco.physics": "the model that a program kept by jax must name",
}
"""Rooms and modules of lower floors that touch files, and why."""

HEAVY = (
    "brax",
    "grain",
    "gymnasium",
    "gymnax",
    "matplotlib",
    "mujoco",
    "orbax",
    "rich",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
    "wandb",
)

CONTRACTS = {
    "envs": re.compile(r"(reset|step|observe|draw|outcome)(_\w+)?|(\w+_)?space|seed"),
    "algos": re.compile(r"(init|select|update|prepare)(_\w+)?"),
}
"""Functions reached through what their file makes: the sections that all its neighbours have."""

UNTYPED = {
    "env": "ours or gymnax's, which have no type in common",
    "env_params": "a pytree, that of whichever environment it is",
    "condition": "a bool or an array of any shape",
    "index": "whatever indexes an array",
    "dtype": "whatever jax takes for one",
    "compute_dtype": "the same",
    "observation_space": "ours or gymnax's",
    "action_space": "the same",
    "axis": "an int, a tuple of them or None, as in NumPy",
    "config": "the `Config` of any algorithm",
    "scores": "whatever NumPy makes an array of",
}
"""Parameters of public functions that need no annotation, and why."""


def _name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _tree(path):
    return ast.parse(path.read_text(), str(path))


def _imports(tree):
    """Yields (imported module, line, at module level) with one entry per imported name."""
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import, write the whole name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                module = full if _is_module(full) else node.module
                yield module, node.lineno, id(node) in top


def _is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def _room(module):
    return module.split(".")[1]


def _rooms():
    return [path for path in SOURCES if _name(path) != ENTRANCE]


@pytest.fixture(params=_rooms(), ids=_name)
def source(request):
    return request.param


def test_every_room_has_a_floor():
    rooms = {_room(_name(path)) for path in _rooms()}
    assert rooms <= set(FLOORS), f"give {rooms - set(FLOORS)} a floor in tests/test_house.py"


def test_imports_only_from_lower_floors(source):
    room = _room(_name(source))
    for module, line, _ in _imports(_tree(source)):
        if not module.startswith("jrl.") or _room(module) == room:
            continue
        other = _room(module)
        below = FLOORS[other] < FLOORS[room]
        assert below or (room, other) in NEIGHBOURS, (
            f"{source}:{line}: {room} (floor {FLOORS[room]}) imports {other} "
            f"(floor {FLOORS[other]})"
        )


def test_exceptions_to_the_floors_are_neighbours_without_a_knot():
    for room, other in NEIGHBOURS:
        assert FLOORS[other] <= FLOORS[room], f"{room} may not import from above: {other}"
        assert (other, room) not in NEIGHBOURS, f"{room} and {other} import each other"


def test_no_algorithm_imports_another(source):
    name = _name(source)
    if _room(name) != "algos":
        return
    for module, line, _ in _imports(_tree(source)):
        own = module == name or module.startswith(f"{name}.") or name.startswith(f"{module}.")
        assert own or not module.startswith("jrl.algos"), f"{source}:{line}: imports {module}"


def test_losses_know_only_arrays(source):
    if _room(_name(source)) != "losses":
        return
    allowed = {"jax", "chex", "numpy", "math", "typing", "collections", "jaxtyping", "functools"}
    for module, line, _ in _imports(_tree(source)):
        known = module.split(".")[0] in allowed or module in ("jrl.types", "jrl.losses")
        assert known or module.startswith("jrl.losses."), f"{source}:{line}: imports {module}"


def test_environments_know_no_learning(source):
    if _room(_name(source)) != "envs":
        return
    for module, line, _ in _imports(_tree(source)):
        if module.startswith("jrl."):
            forbidden = {"losses", "networks", "train", "distributions"}
            assert _room(module) not in forbidden, f"{source}:{line}: imports {module}"


def test_only_the_training_step_applies_updates(source):
    if _room(_name(source)) != "train":
        assert "apply_updates" not in source.read_text(), f"{source}: use train.make_train_step"


def test_only_networks_and_lm_know_flax_modules(source):
    if _room(_name(source)) in ("networks", "lm"):
        return
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flax"):
            names = {alias.name for alias in node.names}
            assert node.module in ("flax", "flax.struct"), f"{source}:{node.lineno}"
            assert node.module != "flax" or names <= {"struct"}, f"{source}:{node.lineno}: {names}"
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("flax") for a in node.names), f"{source}:{node.lineno}"


def test_no_transformation_or_optimizer_of_nnx(source):
    found = re.search(r"nnx\.(jit|vmap|grad|value_and_grad|scan|Optimizer|pmap)\b", _code(source))
    assert not found, f"{source}: {found}: jax's own transformations only"


def test_lower_floors_are_silent(source):
    room = _room(_name(source))
    names = {room, _name(source).removeprefix("jrl.")}
    if FLOORS[room] >= SPEAKERS or names & set(WRITERS):
        return
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "open", "input"), f"{source}:{node.lineno}"
    for module, line, _ in _imports(_tree(source)):
        root = module.split(".")[0]
        assert root not in ("time", "datetime", "logging", "shutil"), f"{source}:{line}: {module}"
    if not names & set(READERS):
        found = re.search(r"\b(read_text|write_text|read_bytes|write_bytes)\(", _code(source))
        assert not found, f"{source}: {found}"


def test_only_sharding_and_the_drivers_name_a_mesh(source):
    if _room(_name(source)) == "sharding" or FLOORS[_room(_name(source))] >= SPEAKERS:
        return
    found = re.search(r"\b(Mesh|make_mesh|PartitionSpec|shard_map|psum|pmean)\b", _code(source))
    assert not found, f"{source}: {found}"


def test_nothing_heavy_at_import(source):
    for module, line, top in _imports(_tree(source)):
        assert not top or module.split(".")[0] not in HEAVY, f"{source}:{line}: import {module}"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert text.count("\n") <= 400, f"{path}: {text.count(chr(10))} lines, at most 400"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Without decorators and docstring: a long explanation is no long function.
            doc = node.body[0] if ast.get_docstring(node) is not None else None
            documented = doc.end_lineno - doc.lineno + 1 if doc else 0
            length = node.end_lineno - node.lineno + 1 - documented
            # The scripts in goldens/ are one list of cases each.
            assert length <= 60 or path.parent.name == "goldens", (
                f"{path}:{node.lineno}: {node.name} has {length} lines"
            )
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", f"{path}:{node.lineno}: annotations are evaluated"


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_skipped_without_a_reason(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "xfail"):
            parent = next(
                (
                    call
                    for call in ast.walk(_tree(path))
                    if isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Attribute)
                    and (call.func.lineno, call.func.col_offset) == (node.lineno, node.col_offset)
                ),
                None,
            )
            reason = parent is not None and (
                any(k.arg == "reason" for k in parent.keywords)
                or (node.attr != "skipif" and parent.args)
            )
            assert reason, f"{path}:{node.lineno}: {node.attr} without a reason"


def _public(module):
    """The functions and classes that a module defines under a public name."""
    return {
        name
        for name, x in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(x) or inspect.isclass(x))
        and inspect.unwrap(x).__module__ == module.__name__
    }


def test_all_is_sorted_whole_and_true(source):
    module = importlib.import_module(_name(source))
    if source.name == "__init__.py" and not hasattr(module, "__all__"):
        assert not _public(module), f"{source}: defines names and has no __all__"
        return
    names = module.__all__
    assert list(names) == sorted(set(names)), f"{source}: sort __all__: {sorted(set(names))}"
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"{source}: {missing} in __all__ do not exist"
    contract = CONTRACTS.get(_room(_name(source)))
    # A class that only a function of the module makes may stay out, a function may not.
    hidden = [
        name
        for name in sorted(_public(module) - set(names))
        if inspect.isfunction(getattr(module, name)) and not (contract and contract.fullmatch(name))
    ]
    assert not hidden, f"{source}: {hidden}: add to __all__ or begin with an underscore"


def test_public_functions_are_documented_and_annotated(source):
    module = importlib.import_module(_name(source))
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        if inspect.unwrap(thing).__module__ != module.__name__:
            continue
        assert inspect.getdoc(thing), f"{source}: {name} has no docstring"
        if inspect.isfunction(thing):
            bare = [
                parameter.name
                for parameter in inspect.signature(thing).parameters.values()
                if parameter.annotation is inspect.Parameter.empty and parameter.name not in UNTYPED
            ]
            assert not bare, f"{source}: {name}: annotate {', '.join(bare)}"


def _code(path):
    """The source without comments and strings."""
    return ast.unparse(_Bare().visit(_tree(path)))


class _Bare(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node):
        return ast.Constant("")
