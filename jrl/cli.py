"""The command line: `jrl run FILE`, `jrl resume RUN`, `jrl plot RUN...` and what else `HELP` lists.

It knows of an experiment only that it is a dataclass with `validate()` and `run(directory,
resume)`; every field is an option. A mistake costs one line and exit code 2, and nothing is
written. Heavy packages are imported where they are needed.
"""

import ast
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import os
import pathlib
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

from jrl.run_directory import RunDirectory, UsageError, plain

__all__ = ["load_experiment", "main"]

HELP = """\
usage: jrl COMMAND [OPTIONS]

  jrl run FILE [OPTIONS]    run the experiment that a Python file defines
  jrl resume RUN            go on with a run that was stopped or killed
  jrl plot RUN...           draw learning curves
  jrl video RUN             film the best and the worst setting side by side
  jrl generate [OPTIONS]    complete prompts with a language model
  jrl list                  show the experiments and the runs below this directory

`jrl run FILE --help` lists the options of that experiment, `jrl COMMAND --help` the others.
jrl --version prints the version.
"""

RUN_HELP = """\
usage: jrl run FILE [OPTIONS]

FILE is a Python file that defines `experiment`; `jrl run FILE --help` lists its options.
For example:

  jrl run experiments/ppo_cartpole.py --seeds 8 --hyper.learning-rate 1e-3
  jrl run experiments/ppo_cartpole.py --sweep clip_eps=0.1,0.2 --directory runs/clipping
"""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how to run."""

    directory: pathlib.Path | None = None
    """Directory of the run; None for runs/NAME."""
    overwrite: bool = False
    """Replace the run in that directory."""
    resume: bool = False
    """Go on with the run in that directory, or start it if there is none."""
    cpu_devices: int | None = None
    """Devices simulated on a CPU; None for one per core."""


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Shows the experiments and the runs below this directory."""

    experiments: pathlib.Path = pathlib.Path("experiments")
    """Directory of the experiments' files."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Directory of the runs."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits: 0 if all went well, 2 after a mistake in the command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments)
        code = 0
    except UsageError as error:
        code = _fail(error, 2)
    except KeyboardInterrupt as error:
        hint = ": go on with `jrl resume RUN`" * (arguments[:1] in (["run"], ["resume"]))
        code = _fail(str(error) or f"interrupted{hint}", 130)
        sys.stdout.flush()
        sys.stderr.flush()
        # The usual way out waits for the program that is running, for minutes perhaps.
        os._exit(code)
    except BrokenPipeError:
        # Whoever read the output has left; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        code = _fail(f"{error.filename}: {error.strerror}: choose another path", 2)
    except RuntimeError as error:
        if type(error).__name__ == "RewardsFailedError":
            # With the traceback of the reward function, which is its author's to read.
            print(f"jrl: error: {error}", file=sys.stderr)
            code = 1
        elif type(error).__name__ == "CorruptCheckpointError":
            code = _fail(error, 1)
        else:
            raise
    sys.exit(code)


def _dispatch(arguments: list[str]) -> None:
    commands = {"run": _run, "resume": _resume, "plot": _plot, "video": _video}
    commands |= {"generate": _generate, "list": _list}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif arguments[0] in ("--version", "-V"):
        print(f"jrl {importlib.metadata.version('jrl')}")
    elif arguments[0] in commands:
        commands[arguments[0]](arguments[1:])
    else:
        raise UsageError(f"no command {arguments[0]!r}: choose from {', '.join(commands)}")


def _fail(message: object, code: int) -> int:
    print(f"jrl: error: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(RUN_HELP, end="")
        return
    if arguments[0].startswith("-"):
        raise UsageError("run: name the experiment's file first: jrl run FILE [OPTIONS]")
    file, rest = pathlib.Path(arguments[0]), arguments[1:]
    options, experiment = _prepare(file, rest, f"jrl run {file}")
    name = getattr(experiment, "name", file.stem)
    directory = options.directory or pathlib.Path("runs") / name
    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite exclude each other: leave one out")
    if options.resume and (directory / "config.json").exists():
        _go(experiment, directory, resume=True)
        return
    kept = _experiments_own(rest)
    run = RunDirectory.create(directory, plain(experiment), file, kept, options.overwrite)
    try:
        _go(experiment, directory, options.resume)
    except UsageError:
        # Refused before it began: the corrected command shall not find it in its way.
        if not run.started:
            shutil.rmtree(directory)
        raise


def _resume(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        text = "jrl resume RUN [OPTIONS]: goes on with a run; OPTIONS are those of where to run"
        if arguments[:1] in (["-h"], ["--help"]):
            print(text)
            return
        raise UsageError(f"resume: name the run's directory: {text}")
    run, rest = RunDirectory(arguments[0]), arguments[1:]
    _go(_reload(run, rest, "resume"), run.path, resume=True)


def _reload(run: RunDirectory, rest: list[str], command: str, file=None) -> Any:
    """Loads the experiment of a run as it was (or another file) with its options."""
    if run.config["experiment"] is None:
        raise UsageError(f"{run.path} was started from Python: call run(directory, resume=True)")
    arguments = [*run.config["arguments"], *rest]
    home = pathlib.Path(run.config["experiment"]).parent
    file = file or run.path / "experiment.py"
    return _prepare(file, arguments, f"jrl {command} {run.path}", home)[1]


def _experiments_own(arguments: list[str]) -> list[str]:
    """Drops what only says where to run: a continuation is where it is."""
    import tyro

    flags = (tyro.conf.FlagCreatePairsOff,)
    options, own = tyro.cli(RunOptions, args=arguments, return_unknown_args=True, config=flags)
    if options.cpu_devices is not None:
        own += ["--cpu-devices", str(options.cpu_devices)]
    return own


def _go(experiment, directory: pathlib.Path, resume: bool) -> None:
    """Runs and shows the results."""
    summary = experiment.run(directory, resume=resume)
    if not summary.get("finished", True):
        return
    run = RunDirectory(directory)
    if not run.summary_file.exists():
        run.write_summary(summary)
    _show(summary)
    print(f"summary: {run.summary_file}")
    if run.metrics_file.exists():
        from jrl import plot

        if plot.available():
            with contextlib.suppress(UsageError):
                metric = getattr(experiment, "metric", "eval/return")
                print(f"plot: {plot.curves([directory], metric)}")


def _plot(arguments: list[str]) -> None:
    from jrl import plot

    o = _parse(plot.Options, arguments, "jrl plot")
    if not o.runs:
        raise UsageError("plot: name one or more directories of runs")
    print(plot.curves(o.runs, o.metric, o.output, against=o.against))


def _video(arguments: list[str]) -> None:
    from jrl import video

    options = _parse(video.Options, arguments, "jrl video")
    run, suffix = RunDirectory(options.run), video.check(options)
    video.backend()
    experiment = _reload(run, [], "video")
    source = pathlib.Path(run.config["experiment"])
    if not hasattr(experiment, "episodes") and source.exists():
        # The run's copy can be older than films are.
        experiment = _reload(run, [], "video", source)
    print(video.make(experiment, options, suffix))


def _generate(arguments: list[str]) -> None:
    from jrl import generate

    options = _parse(generate.Options, arguments, "jrl generate")
    print(generate.run(options), file=sys.stderr)


def _list(arguments: list[str]) -> None:
    options = _parse(ListOptions, arguments, "jrl list")
    lines = [(str(file), _first_line(file)) for file in sorted(options.experiments.glob("*.py"))]
    for config in sorted(options.runs.glob("*/config.json")):
        with contextlib.suppress(UsageError):
            run = RunDirectory(config.parent)
            lines.append((str(run.path), run.state()))
    if not lines:
        print(f"no experiments in {options.experiments} and no runs in {options.runs}")
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        print(f"{name:{width}}  {text}")


def _first_line(file: pathlib.Path) -> str:
    """Reads the docstring without running the file."""
    try:
        text = ast.get_docstring(ast.parse(file.read_text())) or "(no docstring)"
    except (OSError, SyntaxError, ValueError) as error:
        return f"({type(error).__name__})"
    return text.splitlines()[0]


def load_experiment(file: pathlib.Path, home: pathlib.Path | None = None) -> Any:
    """Runs a Python file and returns its `experiment`.

    Modules next to it, or in `home`, can be imported by it. Raises UsageError if there is no
    such file, if it raises, or if what it defines is no experiment.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    directory = str((home or file.parent).absolute())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec = importlib.util.spec_from_file_location("jrl_experiment", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name while they are being made.
    sys.modules["jrl_experiment"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"
        ]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        raise UsageError(f"{file}, line {line}: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "experiment", None)
    if experiment is None:
        raise UsageError(f"{file} defines no `experiment`: add `experiment = Experiment(...)`")
    methods = all(callable(getattr(experiment, name, None)) for name in ("validate", "run"))
    if not methods or not dataclasses.is_dataclass(experiment) or isinstance(experiment, type):
        raise UsageError(
            f"{file}: `experiment` must be an instance of a dataclass with validate() and run()"
        )
    return experiment


def _prepare(
    file: pathlib.Path, arguments: list[str], prog: str, home: pathlib.Path | None = None
) -> tuple[RunOptions, Any]:
    """Loads an experiment, sets its fields from the options and validates it."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    _simulate_devices(arguments)
    experiment = load_experiment(file, home)
    import tyro

    flat = tyro.conf.arg(name="")
    both = dataclasses.make_dataclass(
        "Both",
        [
            ("options", Annotated[RunOptions, flat]),
            ("experiment", Annotated[type(experiment), flat]),
        ],
    )
    text = (sys.modules["jrl_experiment"].__doc__ or "").strip()
    default = both(RunOptions(), experiment)
    parsed = _parse(both, arguments, prog, default=default, description=text)
    try:
        parsed.experiment.validate()
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    return parsed.options, parsed.experiment


def _simulate_devices(arguments: list[str]) -> None:
    """Gives a CPU as many devices as it has cores, before the file can start the back end."""
    pattern = re.compile(r"--cpu[-_]devices(?:=(.*))?")
    wanted = None
    for i, word in enumerate(arguments):
        match = pattern.fullmatch(word)
        if match:
            wanted = match[1] or (arguments[i + 1] if i + 1 < len(arguments) else "")
    if wanted == "None":
        wanted = None
    if wanted is not None and not (wanted.isdecimal() and int(wanted) > 0):
        raise UsageError(f"--cpu-devices must be a whole number of at least 1, got {wanted!r}")
    if wanted is None and "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    if wanted is None and jax.config.values["jax_num_cpu_devices"] > 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Once a back end runs, as in a notebook, the number of its devices is what it is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", int(wanted or cores or 1))


def _parse(target, arguments: list[str], prog: str, **settings):
    """Parses options with tyro; its boxes of errors become one line."""
    import tyro

    stream, config = io.StringIO(), (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stderr(stream):
            return tyro.cli(target, args=arguments, prog=prog, config=config, **settings)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(stream.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """Keeps the message of a box, the options that it explains or suggests, and the way to help."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"]
    rule = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    message = " ".join(lines[:rule])
    options = ", ".join(line for line in lines[rule:] if line.startswith("--"))
    return f"{message}{f' (options: {options})' if options else ''}; see {prog} --help"


def _show(summary: dict[str, Any]) -> None:
    """Prints a table of the settings' returns, or what else an experiment returned."""
    rows = summary.get("settings")
    if not (isinstance(rows, list) and all(isinstance(r, dict) and r.get("return") for r in rows)):
        for name, value in summary.items():
            if isinstance(value, str | int | float):
                print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "return", "95 % interval", "seeds")
    for row in rows:
        x = row["return"]
        mean = "-" if x["mean"] is None else f"{x['mean']:.1f}"
        bounds = "-" if x["low"] is None else f"{x['low']:.1f} to {x['high']:.1f}"
        table.add_row(row["setting"], mean, bounds, str(x["n"]))
    Console().print(table)
    if summary.get("note"):
        print(summary["note"])
    print(
        f"{summary['population']} members x {summary['steps']:,} steps in "
        f"{summary['seconds']:.1f} s, {summary['compile_seconds']:.1f} s of it compiling: "
        f"{summary['steps_per_second']:,.0f} steps/s on {summary['device']}"
    )


if __name__ == "__main__":
    main()
