"""`launcher=slurm`: jobs that fill one folder together, by way of submitit."""

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from guidex.config.compose import Config
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import own_folder
from guidex.errors import UsageError
from guidex.runs.ranks import this_rank
from guidex.runs.settings import whole


@dataclass(frozen=True)
class Job:
    """A command in a process of its own; one that is ended before its time goes on in the next."""

    words: list[str]

    def __call__(self) -> None:
        sys.argv = ["guidex", *self.words]
        runpy.run_module("guidex", run_name="__main__")  # exits, and so tells SLURM how it went

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Here:
    """No jobs: this process runs the command."""

    cluster: ClassVar[str | None] = None


@dataclass(frozen=True, kw_only=True)
class Local(Here):
    """Processes on this machine, in the background.

    Attributes:
        jobs: how many.
        minutes: after which each is ended.
    """

    jobs: int
    minutes: int
    cluster: ClassVar[str | None] = "local"

    def __post_init__(self) -> None:
        for key in ("jobs", "minutes"):
            whole({f"launcher.{key}": getattr(self, key)}, f"launcher.{key}")

    def parameters(self) -> dict[str, Any]:
        """What submitit is told."""
        return {"timeout_min": self.minutes}


@dataclass(frozen=True, kw_only=True)
class Slurm(Local):
    """Jobs of SLURM.

    Attributes:
        partition, account, qos: those of sbatch, or None.
        gpus, cpus, memory: for each job; memory in GB.
        options: others of sbatch, by name.
    """

    partition: str | None
    account: str | None
    qos: str | None
    gpus: int
    cpus: int
    memory: int
    options: dict[str, Any]
    cluster: ClassVar[str | None] = "slurm"

    def parameters(self) -> dict[str, Any]:
        own = {f"slurm_{key}": getattr(self, key) for key in ("partition", "account", "qos")}
        return super().parameters() | {
            **{key: value for key, value in own.items() if value is not None},
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
            "slurm_array_parallelism": self.jobs,
            "slurm_additional_parameters": self.options,
        }


def launch(words: Sequence[str], config: Config, folder: Path) -> bool:
    """Submit the jobs of a command, if its configuration has a launcher; says whether it has.

    Raises:
        UsageError: submitit or SLURM is not here; overwrite=true.
    """
    launcher = instantiate(config["launcher"], "launcher", Models(), Here)
    if launcher.cluster is None:
        return False
    if config["overwrite"] or this_rank().count > 1:
        raise UsageError("launcher=… starts several processes: no overwrite=true, no torchrun")
    place = folder / ".jobs"
    try:
        import submitit

        executor = submitit.AutoExecutor(place, cluster=launcher.cluster)
    except ImportError as error:
        raise UsageError("launcher=… needs submitit: pip install '.[cluster]'") from error
    except RuntimeError as error:  # there is no srun
        raise UsageError(f"launcher={launcher.cluster}: {error}") from error
    executor.update_parameters(name=f"guidex-{folder.name}", **launcher.parameters())
    kept = [word for word in words if word.partition("=")[0].partition(".")[0] != "launcher"]
    own = [] if own_folder() is None else ["--config-dir", str(own_folder())]
    job = Job([*kept, f"out={folder.absolute()}", *own])
    with executor.batch():
        submitted = [executor.submit(job) for _ in range(launcher.jobs)]
    print(f"jobs {', '.join(one.job_id for one in submitted)} fill {folder}; logs are in {place}")
    print(f"guidex status {folder} tells how far they are")
    return True
