"""`launcher=slurm`: jobs that fill one folder together, by way of submitit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidex.config.compose import Config
from guidex.config.presets import own_folder
from guidex.errors import GuidexError, UsageError
from guidex.runs.ranks import this_rank
from guidex.runs.settings import whole


@dataclass(frozen=True)
class Job:
    """A command in a process of its own; one that is ended before its time goes on in the next."""

    words: list[str]

    def __call__(self) -> None:
        from guidex.cli import main

        code = main(self.words)
        if code != 0:
            raise GuidexError(f"guidex {self.words[0]} ended with exit code {code}")

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def launch(words: Sequence[str], config: Config, folder: Path) -> bool:
    """Submit the jobs of a command, if its configuration has a launcher; says whether it has.

    Raises:
        UsageError: submitit or SLURM is not here; overwrite=true.
    """
    launcher = config["launcher"]
    if launcher["cluster"] is None:
        return False
    try:
        import submitit
    except ImportError as error:
        raise UsageError("launcher=… needs submitit: pip install '.[cluster]'") from error
    if config["overwrite"] or this_rank().count > 1:
        raise UsageError("launcher=… starts several processes: no overwrite=true, no torchrun")
    jobs, place = whole({"launcher.jobs": launcher["jobs"]}, "launcher.jobs"), folder / ".jobs"
    try:
        executor = submitit.AutoExecutor(place, cluster=launcher["cluster"])
    except RuntimeError as error:  # there is no sbatch
        raise UsageError(f"launcher={launcher['cluster']}: {error}") from error
    asked = {"timeout_min": launcher["minutes"], "name": f"guidex-{folder.name}"}
    if launcher["cluster"] == "slurm":
        names = {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "memory": "mem_gb"}
        asked |= {name: launcher[key] for key, name in names.items()}
        own = {f"slurm_{key}": launcher[key] for key in ("partition", "account", "qos")}
        asked |= {key: value for key, value in own.items() if value is not None}
        asked |= {"slurm_array_parallelism": jobs}
        asked |= {"slurm_additional_parameters": launcher["options"]}
    executor.update_parameters(**asked)
    kept = [word for word in words if word.partition("=")[0].partition(".")[0] != "launcher"]
    own = [] if own_folder() is None else ["--config-dir", str(own_folder())]
    job = Job([*kept, f"out={folder.absolute()}", *own])
    with executor.batch():
        submitted = [executor.submit(job) for _ in range(jobs)]
    print(f"jobs {', '.join(one.job_id for one in submitted)} fill {folder}; logs are in {place}")
    print(f"guidex status {folder} tells how far they are")
    return True
