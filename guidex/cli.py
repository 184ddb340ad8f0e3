"""The command line: which command, help, errors and exit codes. Imports nothing heavy by itself."""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import guidex
from guidex.config.presets import KINDS, listing, nearest, use
from guidex.errors import GuidexError, UsageError

_OVERRIDES = """\
Settings are overrides, key=value, in Hydra's grammar: a preset (model=digits, guidance=interval),
or a value (guidance.schedule.w=3, sampler.grid.steps=16, seeds=0-999). `guidex list` shows the
presets and `--cfg` all keys with their values. Presets of your own lie in --config-dir; classes and
functions of your own, which these name, in plugin=FILE.py or plugin=MODULE (docs/extending.md).
"""

_SAMPLE = f"""\
Sample images under guidance, one per seed, into a folder: images/, labels.csv, grid.png.

{_OVERRIDES}
examples:
  guidex sample
  guidex sample guidance=cfg guidance.schedule.w=2 seeds=0-255 labels=7
  guidex sample guidance=interval guidance.schedule.lo=0.2 guidance.schedule.hi=2 --plan
  guidex sample model=kernel model.data=MY_IMAGES guidance=autoguidance out=samples
  guidex sample model=fractal2d guidance=autoguidance sampler.grid.sigma_max=5
  guidex sample eval=true guidance=cfg seeds=0-1799
"""

_SWEEP = f"""\
Sample and measure a table of points on the same seeds; write a table, plots and image grids.

{_OVERRIDES}
A key with several values is an axis: w=1,1.5,2  hi=range(1,5)  guidance=cfg,interval. All
combinations are run (sweep.mode=zip pairs them instead). Without any axis, the default experiment
is run.

examples:
  guidex sweep
  guidex sweep guidance=cfg guidance.schedule.w=1,1.5,2,3
  guidex sweep guidance=interval guidance.schedule.lo=0,0.1,0.3 guidance.schedule.hi=0.6,1,2
  guidex sweep guidance=cfg guidance/schedule=constant,linear,cosine guidance.schedule.w=2
  guidex sweep experiment=interval/fig2
"""


def _protocols() -> str:
    """What `guidex list protocols` shows, for the help of eval."""
    rows = listing("protocols")
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


_EVAL = f"""\
Measure images (a folder, zip or npz) against a reference: images, or a model that knows its data.

examples:
  guidex eval outputs/sample/cfg-1a2b3c4d ref=digits
  guidex eval fakes.zip ref=reals/ detector=pixels metrics=[frechet,prdc] metrics.prdc.k=5
  guidex eval samples.npz ref=fractal2d detector=coordinates metrics=[frechet,toy]
  guidex eval fakes/ ref=img512.pkl protocol=edm2
  guidex eval fakes/ detector=inception_logits metrics=[inception_score]

To compare with a paper, choose its protocol, which is a set of detectors and metrics:

{_protocols()}
"""

_REF = """\
Compute the statistics of a set of images once, to compare with later as ref=FILE.

examples:
  guidex ref IMAGENET_FOLDER dest=img512-inception.npz detector=inception
  guidex ref reals.zip dest=reals.npz detector=dinov2 features=true
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


class Command(NamedTuple):
    """What the command line knows of a command.

    Attributes:
        text: its help.
        words: what its words are called.
        configured: whether it has a configuration to print.
        planned: whether it has a plan to print.
        function: module and name of what runs it, imported when it does.
    """

    text: str
    words: str
    configured: bool
    planned: bool
    function: str


_COMMANDS = {
    "sample": Command(_SAMPLE, "OVERRIDE", True, True, "guidex.commands.sample:sample"),
    "sweep": Command(_SWEEP, "OVERRIDE", True, True, "guidex.commands.sweep:sweep"),
    "eval": Command(_EVAL, "IMAGES|OVERRIDE", True, False, "guidex.commands.evaluate:evaluate"),
    "ref": Command(
        _REF, "IMAGES|OVERRIDE", True, False, "guidex.commands.reference:make_reference"
    ),
    "models": Command(_MODELS, "PRESET", False, False, "guidex.commands.models:models_command"),
    "convert": Command(_CONVERT, "WORD", False, False, "guidex.commands.convert:convert_command"),
    "ema": Command(_EMA, "WORD", False, False, "guidex.commands.ema:ema_command"),
}

_LIST = f"""\
List presets, with one line on each: {", ".join(KINDS)}.

`guidex list layers model=…` names the self-attention layers of a model, for perturbed attention.

examples:
  guidex list schedules
  guidex list layers model=edm2-img512-s
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run guidex; returns the exit code: 0 done, 1 failed, 2 asked for something impossible.

    Arguments:
        arguments: words of the command line; None for those of the process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    debug = os.environ.get("GUIDEX_DEBUG") == "1"
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
    except GuidexError as error:
        if debug:
            raise
        print(f"guidex: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        print(f"guidex: {kind}: {error}\n(GUIDEX_DEBUG=1 shows where)", file=sys.stderr)
        return 1
    return 0


def _parsed(words: list[str]) -> argparse.Namespace:
    """The words of the command line, taken apart.

    Raises:
        UsageError: no such command or option, with the nearest.
    """
    command = next((word for word in words if not word.startswith("-")), None)
    if command not in (None, "list", *_COMMANDS):
        raise UsageError(f"there is no command {command}{nearest(command, ['list', *_COMMANDS])}")
    options, others = _parser().parse_known_args(words)
    for word in others:
        if word.startswith("-"):
            known = [name for name in ("cfg", "plan", "config_dir") if hasattr(options, name)]
            allowed = ["--help", *(f"--{name.replace('_', '-')}" for name in known)]
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
    for name, known in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=re.split(r"\. |\.$|[:;]", known.text.splitlines()[0])[0],
            description=known.text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("words", nargs="*", metavar=known.words)
        if known.configured:
            text = "print the configuration and stop"
            command.add_argument("--cfg", action="store_true", help=text)
            _add_config_dir(command)
        if known.planned:
            command.add_argument("--plan", action="store_true", help="print the plan and stop")
    command = commands.add_parser(
        "list",
        help="List presets",
        description=_LIST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config_dir(command)
    command.add_argument("kind", nargs="?", metavar="KIND")
    command.add_argument("words", nargs="*", metavar="OVERRIDE")
    return parser


def _add_config_dir(command: argparse.ArgumentParser) -> None:
    text = "find presets also in DIR (DIR/model/NAME.yaml, …); plugin=FILE.py holds what they name"
    command.add_argument("--config-dir", metavar="DIR", help=text)


def _dispatch(options: argparse.Namespace) -> None:
    if options.command == "list":
        _list(options.kind, options.words)
        return
    command = _COMMANDS[options.command]
    if command.configured and options.cfg:
        _print_config(options.command, options.words)
        return
    if command.configured:
        _check_words(options.command, options.words)
    module, _, name = command.function.partition(":")
    run = getattr(importlib.import_module(module), name)
    if command.planned:
        run(options.words, options.plan)
    else:
        run(options.words)


def _list(kind: str | None, words: Sequence[str]) -> None:
    if kind == "layers":
        from guidex.commands.layers import layers

        print("\n".join(layers(words)))
        return
    if words:
        raise UsageError(f"guidex list {kind} takes no overrides, but {' '.join(words)} is given")
    for name in KINDS if kind is None else [kind]:
        rows = listing(name)
        if kind is None:
            print(f"{name}:")
        indent = "" if kind is not None else "  "
        width = max((len(preset) for preset, _ in rows), default=0)
        for preset, text in rows:
            print(f"{indent}{preset:<{width}}  {text}")


def _check_words(command: str, words: Sequence[str]) -> None:
    from guidex.config.compose import check_words

    check_words(command, words)


def _print_config(command: str, words: Sequence[str]) -> None:
    from guidex.config.compose import show

    print(show(command, words), end="")
