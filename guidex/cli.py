"""The command line: which command, help, errors and exit codes. Imports nothing heavy by itself."""

import argparse
import os
import sys
from collections.abc import Sequence

import guidex
from guidex.errors import GuidexError
from guidex.presets import KINDS, listing

_OVERRIDES = """\
Settings are overrides, key=value, in Hydra's grammar: a preset (model=digits, guidance=interval),
or a value (guidance.schedule.w=3, sampler.grid.steps=16, seeds=0-999). `guidex list` shows the
presets and `--cfg` all keys with their values.
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
"""

_SWEEP = f"""\
Sample and measure a table of points on the same seeds; write a table, plots and image grids.

{_OVERRIDES}
A key with several values is an axis: w=1,1.5,2  hi=range(1,5)  guidance=cfg,interval. All
    combinations
are run (sweep.mode=zip pairs them instead). Without any axis, the default experiment is run.

examples:
  guidex sweep
  guidex sweep guidance=cfg guidance.schedule.w=1,1.5,2,3
  guidex sweep guidance=interval guidance.schedule.lo=0,0.1,0.3 guidance.schedule.hi=0.6,1,2
  guidex sweep guidance=cfg guidance/schedule=constant,linear,cosine guidance.schedule.w=2
  guidex sweep experiment=interval/fig2
"""

_EVAL = """\
Measure images (a folder, zip or npz) against a reference: images, or a model that knows its data.

examples:
  guidex eval outputs/sample/cfg-1a2b3c4d ref=digits
  guidex eval fakes.zip ref=reals/ detector=pixels metrics=[frechet,prdc] metrics.prdc.k=5
  guidex eval samples.npz ref=fractal2d detector=coordinates metrics=[frechet,toy]
"""

_LIST = "List presets, with one line on each.\n\nkinds: " + ", ".join(KINDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run guidex; returns the exit code: 0 done, 1 failed, 2 asked for something impossible.

    Arguments:
        arguments: words of the command line; None for those of the process.
    """
    options = _parser().parse_args(arguments)
    debug = os.environ.get("GUIDEX_DEBUG") == "1"
    try:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guidex",
        description="Guidance experiments for diffusion models: sample, evaluate, sweep.",
        epilog="guidex COMMAND --help explains a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"guidex {guidex.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text, words in (
        ("sample", _SAMPLE, "OVERRIDE"),
        ("sweep", _SWEEP, "OVERRIDE"),
        ("eval", _EVAL, "IMAGES|OVERRIDE"),
    ):
        command = commands.add_parser(
            name,
            help=text.partition(".")[0].partition(":")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("words", nargs="*", metavar=words)
        command.add_argument("--cfg", action="store_true", help="print the configuration and stop")
        if name != "eval":
            command.add_argument("--plan", action="store_true", help="print the plan and stop")
    command = commands.add_parser(
        "list",
        help="List presets",
        description=_LIST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("kind", nargs="?", metavar="KIND")
    return parser


def _dispatch(options: argparse.Namespace) -> None:
    if options.command == "list":
        _list(options.kind)
    elif options.cfg:
        _print_config(options.command, options.words)
    elif options.command == "sample":
        from guidex.runs.sample import sample

        sample(options.words, options.plan)
    elif options.command == "sweep":
        from guidex.runs.sweep import sweep

        sweep(options.words, options.plan)
    else:
        from guidex.runs.evaluate import evaluate

        evaluate(options.words)


def _list(kind: str | None) -> None:
    for name in KINDS if kind is None else [kind]:
        rows = listing(name)
        if kind is None:
            print(f"{name}:")
        indent = "" if kind is not None else "  "
        width = max((len(preset) for preset, _ in rows), default=0)
        for preset, text in rows:
            print(f"{indent}{preset:<{width}}  {text}")


def _print_config(command: str, words: Sequence[str]) -> None:
    from guidex.config import show

    print(show(command, words), end="")
