"""The command line: which command, help, errors and exit codes. Imports nothing heavy by itself."""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence

import guidex
from guidex.config.presets import KINDS, listing, nearest, use
from guidex.errors import GuidexError, UsageError

_OVERRIDES = """\
Settings are overrides, key=value, in Hydra's grammar: a preset (model=digits, guidance=interval),
or a value (guidance.schedule.w=3, sampler.grid.steps=16, seeds=0-999). `guidex list` shows the
presets and `--cfg` all keys with their values. Presets of your own lie in --config-dir, and code of
your own that they name in plugin=FILE.py or plugin=MODULE (docs/extending.md).
"""

_SAMPLE = f"""\
Sample images under guidance, one per seed, into a folder: images/, labels.csv, grid.png.

{_OVERRIDES}
examples:
  guidex sample guidance=cfg guidance.schedule.w=2 seeds=0-255 labels=7
  guidex sample guidance=interval guidance.schedule.lo=0.2 guidance.schedule.hi=2 --plan
  guidex sample model=kernel model.data=MY_IMAGES guidance=autoguidance out=samples
  guidex sample eval=true guidance=cfg seeds=0-1799
"""

_SWEEP = f"""\
Sample and measure a table of points on the same seeds; write a table, plots and image grids.

{_OVERRIDES}
A key with several values is an axis: w=1,1.5,2  hi=range(1,5)  guidance=cfg,interval. All
combinations are run (sweep.mode=zip pairs them); without an axis, the default experiment is.

examples:
  guidex sweep
  guidex sweep guidance=interval guidance.schedule.lo=0,0.1,0.3 guidance.schedule.hi=0.6,1,2
  guidex sweep experiment=interval/fig2
"""

_TUNE = f"""\
Find the best values of ranges under a budget; every candidate is a row of a table.

{_OVERRIDES}
A range is key=a..b, key=a..b:log, key=a..b:STEP or key=a,b,c. A budget is a number of evaluations,
GFLOP, images or seconds. The same command goes on where it was, one with a larger budget further.

examples:
  guidex tune guidance=interval guidance.schedule.w=1..12 guidance.schedule.hi=0.2..4:log \\
    metric=fd_pixels budget='2e6 evaluations'
"""


_EVAL = """\
Measure images (a folder, zip or npz) against a reference: images, or a model that knows its data.

examples:
  guidex eval outputs/sample/cfg-1a2b3c4d ref=digits
  guidex eval fakes.zip ref=reals/ detector=pixels metrics=[frechet,prdc] metrics.prdc.k=5
  guidex eval fakes/ ref=img512.pkl protocol=edm2

A protocol is a paper's set of detectors and metrics; `guidex list protocols` shows them.
"""

_COMPARE = """\
Join the tables of several runs into one. Runs that were not measured alike are refused, with why.

examples:
  guidex compare outputs/sweep/cfg-1a2b3c outputs/sweep/interval-4d5e6f
  guidex compare RUN1 RUN2 baseline=guidance=none out=outputs/both
"""

_REF = """\
Compute the statistics of a set of images once, to compare with later as ref=FILE.

examples:
  guidex ref IMAGENET_FOLDER dest=img512-inception.npz detector=inception
  guidex ref reals.zip dest=reals.npz detector=dinov2 features=true
"""

_TABLE = """\
Write the tables and figures of a sweep anew, from what is there, at any time. Exit code 1: not all.

example:
  guidex table outputs/sweep/interval-digits-1a2b3c
"""

_STATUS = """\
Tell how far a sweep or sample is: samples that are missing, processes at work, and failures.

example:
  guidex status outputs/sweep/interval-digits-1a2b3c
"""

_REPORT = """\
Write one HTML file of the table, figures and images of one sweep or more, to be explored.

examples:
  guidex report outputs/sweep/cfg-1a2b3c
  guidex report outputs/a outputs/b out=both.html
"""

_FETCH = """\
Bring every file that a run needs, for jobs without network. --plan says what of it is here.

examples:
  guidex fetch model=edm2-img512-xxl guidance=interval protocol=edm2 --plan
"""

_CONVERT = """\
Convert a released EDM2 snapshot (.pkl) to PATH.safetensors + PATH.json. Nothing in it is executed.

example:
  guidex convert edm2-img512-s-2147483-0.130.pkl out=edm2-s.safetensors
"""

_MODELS = """\
List the checkpoints of the model presets: cached or not, how large, from where.

examples:
  guidex models
  guidex models edm2-img512-xxl
"""

_EMA = """\
Reconstruct a network with another EMA length from raw training snapshots (arXiv 2312.02696).

example:
  guidex ema SNAPSHOT_FOLDER ema=0.1 out=edm2-ema-0.100.safetensors
"""

_COMPLETION = """\
Print what lets a shell complete commands, keys, groups and presets: bash, zsh or fish.

examples:
  source <(guidex completion bash)    # in ~/.bashrc; for zsh in ~/.zshrc
  guidex completion fish | source     # in ~/.config/fish/config.fish
"""

_LIST = f"""\
List presets, with one line on each: {", ".join(KINDS)};
or the self-attention layers of a model, for perturbed attention.

examples:
  guidex list schedules
  guidex list layers model=edm2-img512-s
"""


# Help, name of the words, module and name of what runs it, and options of each command.
_COMMANDS = {
    "sample": (_SAMPLE, "OVERRIDE", "sample:sample", ("cfg", "config-dir", "plan")),
    "sweep": (_SWEEP, "OVERRIDE", "sweep:sweep", ("cfg", "config-dir", "plan")),
    "tune": (_TUNE, "OVERRIDE", "tune:tune", ("cfg", "config-dir")),
    "eval": (_EVAL, "IMAGES|OVERRIDE", "evaluate:evaluate", ("cfg", "config-dir")),
    "compare": (_COMPARE, "DIR|OVERRIDE", "compare:compare", ()),
    "ref": (_REF, "IMAGES|OVERRIDE", "reference:make_reference", ("cfg", "config-dir")),
    "table": (_TABLE, "DIR", "table:table_command", ()),
    "status": (_STATUS, "DIR", "table:status", ()),
    "report": (_REPORT, "DIR", "report:report_command", ()),
    "models": (_MODELS, "PRESET", "models:models_command", ()),
    "fetch": (_FETCH, "OVERRIDE", "fetch:fetch_command", ("config-dir", "plan")),
    "convert": (_CONVERT, "WORD", "convert:convert_command", ()),
    "ema": (_EMA, "WORD", "ema:ema_command", ()),
    "list": (_LIST, "KIND|OVERRIDE", "", ("config-dir",)),
    "completion": (_COMPLETION, "SHELL", "", ("config-dir",)),
}
_OPTIONS = {
    "cfg": {"action": "store_true", "help": "print the configuration and stop"},
    "config-dir": {"metavar": "DIR", "help": "find presets also in DIR (DIR/model/NAME.yaml, …)"},
    "plan": {"action": "store_true", "help": "print the plan and stop"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run guidex with the words given, or those of the process; returns the exit code: 0 done, 1
    failed, 2 asked for something impossible."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parsed(words)
        use(getattr(options, "config_dir", None))
        _dispatch(options)
    except KeyboardInterrupt:
        print("\nguidex: stopped; run the same command again to go on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, say) went away. Python would complain once more when flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("GUIDEX_DEBUG") == "1":
            raise
        if isinstance(error, GuidexError):
            print(f"guidex: {error}", file=sys.stderr)
            return error.exit_code
        kind = type(error).__name__
        print(f"guidex: {kind}: {error}\n(GUIDEX_DEBUG=1 shows where)", file=sys.stderr)
        return 1
    return 0


def _parsed(words: list[str]) -> argparse.Namespace:
    """The words of the command line, taken apart."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in _COMMANDS:
        raise UsageError(f"there is no command {name}{nearest(name, _COMMANDS)}")
    options, others = _parser().parse_known_args(words)
    for word in others:
        if word.startswith("-"):
            allowed = ["--help", *(f"--{known}" for known in _COMMANDS[name][3])]
            raise UsageError(f"there is no option {word}{nearest(word, allowed)}")
    options.words += others  # argparse stops at an option among them
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guidex",
        description="Guidance experiments for diffusion models: sample, sweep, measure.",
        epilog="guidex COMMAND --help explains a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"guidex {guidex.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (text, words, _, options) in _COMMANDS.items():
        first = re.split(r"\. |\.$|[:;]", text.splitlines()[0])[0]
        form = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(name, help=first, description=text, formatter_class=form)
        added.add_argument("words", nargs="*", metavar=words)
        for option in options:
            names = [f"--{option}", *(["--dry-run"] if option == "plan" else [])]
            added.add_argument(*names, **_OPTIONS[option])
    return parser


def _dispatch(options: argparse.Namespace) -> None:
    words = options.words
    if options.command == "list":
        _list(words)
        return
    if options.command == "completion":
        from guidex.commands.completion import completion

        print(completion(words, {name: each[3] for name, each in _COMMANDS.items()}), end="")
        return
    if "cfg" in options:
        from guidex.config.compose import check_words, show

        if options.cfg:
            print(show(options.command, words), end="")
            return
        check_words(options.command, words)
    module, _, name = _COMMANDS[options.command][2].partition(":")
    run = getattr(importlib.import_module(f"guidex.commands.{module}"), name)
    run(words, options.plan) if "plan" in options else run(words)


def _rows(kind: str, indent: str = "") -> str:
    """A line for each preset of a kind."""
    rows = listing(kind)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{indent}{name:<{width}}  {text}" for name, text in rows)


def _list(words: Sequence[str]) -> None:
    if words[:1] == ["layers"]:
        from guidex.commands.layers import layers

        print("\n".join(layers(words[1:])))
    elif words:
        print(_rows(" ".join(words)))
    else:
        print("\n".join(f"{kind}:\n{_rows(kind, '  ')}" for kind in KINDS))
