"""What the runs of every environment left behind, read and checked.

Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms",
https://arxiv.org/abs/1707.06347, section 6.1 and Table 1.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Collection

import numpy as np

__all__ = ["ENVIRONMENTS", "FAMILIES", "PAPER", "Results", "Setting", "family", "load", "read"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the paper's Table 1: its caption, its short one and its score."""

    label: str
    short: str
    score: float


PAPER = {
    "none": Setting("no clipping or penalty", "none", -0.39),
    "clip0.1": Setting("clipping, ε = 0.1", "clip\n0.1", 0.76),
    "clip0.2": Setting("clipping, ε = 0.2", "clip\n0.2", 0.82),
    "clip0.3": Setting("clipping, ε = 0.3", "clip\n0.3", 0.70),
    "akl0.003": Setting("adaptive KL, target 0.003", "adaptive\n0.003", 0.68),
    "akl0.01": Setting("adaptive KL, target 0.01", "adaptive\n0.01", 0.74),
    "akl0.03": Setting("adaptive KL, target 0.03", "adaptive\n0.03", 0.71),
    "kl0.3": Setting("fixed KL, β = 0.3", "fixed\n0.3", 0.62),
    "kl1": Setting("fixed KL, β = 1", "fixed\n1", 0.71),
    "kl3": Setting("fixed KL, β = 3", "fixed\n3", 0.72),
    "kl10": Setting("fixed KL, β = 10", "fixed\n10", 0.69),
}
"""Table 1, in its order."""

FAMILIES = {"none": "no constraint", "clip": "clipping", "akl": "adaptive KL", "kl": "fixed KL"}
"""What a setting's name begins with -> the kind of surrogate objective."""

ENVIRONMENTS = (
    "HalfCheetah",
    "Hopper",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Reacher",
    "Swimmer",
    "Walker2d",
)

FIELDS = ("env", "steps", "seeds", "random_score", "settings", "curve_steps", "protocol")
SETTING_FIELDS = ("name", "clip_eps", "kl_beta", "kl_target", "adaptive", "scores", "curves")


@dataclasses.dataclass(frozen=True)
class Results:
    """The runs of all environments, in the paper's order; NaN where no episode had ended."""

    environments: tuple[str, ...]
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    random: np.ndarray
    """[environments]"""
    scores: np.ndarray
    """[environments, settings, seeds]"""
    curve_steps: tuple[np.ndarray, ...]
    """[points] of each environment"""
    curves: tuple[np.ndarray, ...]
    """[settings, seeds, points] of each environment"""
    notes: tuple[str, ...]
    """What a reader of the table must know about the files."""


def family(name: str) -> str:
    """Returns the key in FAMILIES that a setting belongs to.

    >>> family("akl0.01")
    'akl'
    """
    return name.rstrip("0123456789.")


def read(directory: str | pathlib.Path) -> Results:
    """Reads Table 1: the results of every environment that is there, see `load`."""
    data, notes = load(directory, PAPER)
    files = list(data.values())
    names = tuple(name for name in PAPER if name in files[0]["settings"])
    return Results(
        environments=tuple(data),
        settings=names,
        seeds=tuple(files[0]["seeds"]),
        steps=files[0]["steps"],
        random=np.array([x["random_score"] for x in files], float),
        scores=np.array([[x["settings"][n]["scores"] for n in names] for x in files]),
        curve_steps=tuple(x["curve_steps"] for x in files),
        curves=tuple(np.array([x["settings"][n]["curves"] for n in names]) for x in files),
        notes=notes,
    )


def load(
    directory: str | pathlib.Path, known: Collection[str]
) -> tuple[dict[str, dict], tuple[str, ...]]:
    """Reads `<environment>.json` of every environment that is there: {environment: content}, notes.

    Files whose name begins with a small letter are someone else's. `known` are the names that
    settings may have; in the content they are keys, and numbers are arrays. Raises ValueError,
    one line that names the file and the field, for a file that is no result and for files that
    differ in what must be the same.
    """
    directory = pathlib.Path(directory)
    paths = [path for path in sorted(directory.glob("*.json")) if path.name[0].isupper()]
    files = {path.name: _read(path, known) for path in paths}
    if not files:
        raise ValueError(
            f"{directory.name}: no results, expected files like {ENVIRONMENTS[0]}.json"
        )
    first, *others = files
    bases: dict[str, str] = {}
    for file, data in files.items():
        base = data["env"].split("-v")[0]
        if base in bases:
            raise ValueError(f"{file}: env: {base} is also in {bases[base]}")
        bases[base] = file
    for file in others:
        for field in ("steps", "seeds", "protocol"):
            if files[file][field] != files[first][field]:
                raise ValueError(f"{file}: {field}: not that of {first}")
        if _what(files[file]) != _what(files[first]):
            raise ValueError(f"{file}: settings: not those of {first}")
    ordered = {base: files[bases[base]] for base in ENVIRONMENTS if base in bases}
    names = tuple(name for name in known if name in files[first]["settings"])
    return ordered, tuple(_notes(ordered, names))


def _what(data: dict) -> dict:
    fields = ("clip_eps", "kl_beta", "kl_target", "adaptive")
    return {name: [x[field] for field in fields] for name, x in data["settings"].items()}


def _notes(files: dict[str, dict], names: tuple[str, ...]):
    """Yields one line for everything odd that is no error."""
    protocol = next(iter(files.values()))["protocol"]
    if protocol not in ("paper", "one choice changed"):
        yield f"Protocol: {protocol}."
    for field in ("git_commit", "versions", "machine"):
        if any(data.get(field) != next(iter(files.values())).get(field) for data in files.values()):
            yield f"The environments were not all run with the same {field.replace('_', ' ')}."
    for environment, data in files.items():
        for name in names:
            setting = data["settings"][name]
            missing = [s for s, x in zip(data["seeds"], setting["scores"], strict=True) if x != x]
            if missing:
                seeds = ", ".join(map(str, missing))
                run = f"{environment}, {name}, seed {seeds}"
                yield f"{run}: no score, counted as the worst run there."
            skipped = setting["skipped"]
            if skipped.any():
                each = ", ".join(f"{100 * x:.3g}" for x in skipped)
                yield f"{environment}, {name}: {each} % of the updates skipped, not finite."


def _read(path: pathlib.Path, known: Collection[str]) -> dict:
    """Reads one file: `settings` by name, numbers as arrays."""
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from None
    _fields(path.name, data, FIELDS)
    if str(data["env"]).split("-v")[0] not in ENVIRONMENTS:
        raise ValueError(f"{path.name}: env: {data['env']!r} is not in the paper's Table 1")
    if not _whole(data["steps"]) or data["steps"] < 1:
        raise ValueError(f"{path.name}: steps: must be a positive integer, got {data['steps']!r}")
    seeds = data["seeds"]
    if not (isinstance(seeds, list) and seeds and all(map(_whole, seeds))):
        raise ValueError(f"{path.name}: seeds: must be a list of integers, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{path.name}: seeds: must differ, got {seeds!r}")
    if not math.isfinite(_numbers(path.name, "random_score", [data["random_score"]], 1)[0]):
        raise ValueError(f"{path.name}: random_score: must be a number, got null or NaN")
    if not isinstance(data["settings"], list) or not data["settings"]:
        raise ValueError(f"{path.name}: settings: must be a list with at least one setting")
    if not isinstance(data["curve_steps"], list):
        raise ValueError(f"{path.name}: curve_steps: must be a list")
    points = len(data["curve_steps"])
    data["curve_steps"] = _numbers(path.name, "curve_steps", data["curve_steps"], points)
    settings = {}
    for i, entry in enumerate(data["settings"]):
        name, setting = _setting(path.name, f"settings[{i}]", entry, known)
        if name in settings:
            raise ValueError(f"{path.name}: settings[{i}].name: {name} comes twice")
        settings[name] = _runs(path.name, name, setting, len(seeds), points)
    return data | {"settings": settings}


def _setting(file: str, where: str, entry, known: Collection[str]) -> tuple[str, dict]:
    _fields(file, entry, SETTING_FIELDS, f"{where}.")
    name = entry["name"]
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{file}: {where}.name: must be one of {', '.join(known)}, got {name!r}")
    return name, entry


def _runs(file: str, name: str, entry: dict, seeds: int, points: int) -> dict:
    """Returns the setting with the numbers of its runs as arrays."""
    scores = _numbers(file, f"{name}.scores", entry["scores"], seeds)
    curves = entry["curves"]
    if not isinstance(curves, list) or len(curves) != seeds:
        raise ValueError(f"{file}: {name}.curves: must be a list of {seeds}, one for each seed")
    curves = [_numbers(file, f"{name}.curves[{i}]", x, points) for i, x in enumerate(curves)]
    skipped = _numbers(file, f"{name}.skipped", entry.get("skipped", [0] * seeds), seeds)
    curves = np.reshape(curves, (seeds, points))
    return entry | {"scores": scores, "curves": curves, "skipped": np.nan_to_num(skipped)}


def _fields(file: str, data, names: tuple[str, ...], where: str = "") -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{file}: {where.rstrip('.') or 'the file'} must be an object")
    for name in names:
        if name not in data:
            raise ValueError(f"{file}: {where}{name}: missing")


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(file: str, field: str, values, length: int) -> np.ndarray:
    """Returns the numbers of a list, NaN for null."""
    if not isinstance(values, list) or len(values) != length:
        raise ValueError(f"{file}: {field}: must be a list of {length} numbers")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and (not number or math.isinf(value)):
            raise ValueError(f"{file}: {field}: must be finite numbers or null, got {value!r}")
    return np.array([math.nan if value is None else value for value in values], float)
