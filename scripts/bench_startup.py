"""How long `guidex --help` and `guidex list` take to start, against a Python that does nothing.

Run: .venv/bin/python scripts/bench_startup.py [RUNS]
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "guidex --help": ["-m", "guidex", "--help"],
    "guidex list": ["-m", "guidex", "list"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def main(runs: int) -> None:
    """Interleave the commands, so that a machine that changes speed changes it for all."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    baseline = medians["python -c pass"]
    for name, median in medians.items():
        print(f"{name:26} {median:6.3f} s  {median / baseline:6.1f} x python -c pass")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
