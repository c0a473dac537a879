"""The processes of a stage as tasks of a Ray cluster (ENGINE=ray), for work that falls apart into rows: stages 02, 05, 06, 11, 12, 13.

reads   nothing of its own; every machine of the cluster sees this checkout, the data and the outputs at the same paths
writes  what the stage writes

Each task runs the stage's own program with RANK and WORLD_SIZE set, as a launcher would. A task whose worker or machine is lost
is begun again by Ray, and the program goes on from what lies on disk; so is one that was told to stop (exit code 143). Processes
that wait for each other (stage 02: `together`) are all begun again, for none of them can join the others anew.
Exit code: the worst of the processes', 3 where one was lost `tries` times. Needs ray: requirements-cluster.txt.

python -m configs.ray_tasks --processes 2 --command '["infer.recommend", "--model", "outputs/quickstart/grpo/final", ...]'
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from configs import program
from configs.program import ROOT, EnvironmentFault, InputError, say, warn

PREEMPTED = 143


@dataclass
class RayTasksArgs:
    """One stage on a cluster."""

    command: list[str]
    """module and flags"""
    processes: int = 1
    """tasks, each a rank"""
    together: bool = False
    """the processes wait for each other: one that is lost ends all of them, and all begin again"""
    gpus: float | None = None
    """of each task; null = one where the cluster has any"""
    cpus: float = 1.0
    """of each task"""
    tries: int = 3
    """times that a lost task is begun again"""
    address: str | None = None
    """of the cluster (ray start prints it); null = RAY_ADDRESS, else a cluster of this machine alone"""

    def __post_init__(self) -> None:
        if not self.command or min(self.processes, self.tries) < 1:
            raise InputError(
                f"command {self.command}, processes {self.processes}, tries {self.tries} -> at least one of each"
            )


class ToldToStop(Exception):
    """A process left with 143: it goes on when it is started again."""


def die_with_parent() -> None:
    """In a child before it becomes the program: a lost worker takes it along, or two would be the same rank (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def run_rank(command: list[str], environment: dict[str, str]) -> int:
    """The program's exit code; ToldToStop for 143."""
    child = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | environment,
        preexec_fn=die_with_parent,
        check=False,
    )
    if child.returncode == PREEMPTED:
        raise ToldToStop(" ".join(command))
    return child.returncode


def environments(args: RayTasksArgs, meeting: dict[str, str]) -> list[dict[str, str]]:
    """What a launcher tells each rank. Ray shows a task its own GPU only, so that it is number 0 there."""
    meeting = {"LAUNCH_ID": uuid.uuid4().hex} | meeting
    common = {"WORLD_SIZE": str(args.processes), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} | meeting
    if args.processes == 1:
        return [{}]
    return [common | {"RANK": str(rank)} for rank in range(args.processes)]


def meeting_place(ray: Any, attempt: int) -> tuple[Any, dict[str, str]]:
    """(a store here, how processes of torch.distributed find it): no rank has to know where rank 0 runs."""
    from torch.distributed import TCPStore

    store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
    address = ray.util.get_node_ip_address()
    return store, {
        "MASTER_ADDR": address, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
    }  # fmt: skip


def worst(codes: list[int]) -> int:
    """0, or the first exit code that is not.

    >>> worst([0, 2, 0])
    2
    """
    return next((code for code in codes if code), 0)


def independent(ray: Any, task: Any, args: RayTasksArgs) -> int:
    """Ranks that know nothing of each other: Ray begins a lost one again."""
    retried = task.options(max_retries=args.tries, retry_exceptions=[ToldToStop])
    left = [retried.remote(args.command, environment) for environment in environments(args, {})]
    codes = []
    while left:
        done, left = ray.wait(left, num_returns=1)
        codes.append(ray.get(done[0]))
        if codes[-1]:  # the others would wait for what never comes
            break
    return worst(codes)


def as_one(ray: Any, task: Any, args: RayTasksArgs) -> int:
    """Ranks that wait for each other: all begin again when one is lost."""
    for attempt in range(args.tries + 1):
        store, meeting = meeting_place(ray, attempt)
        tasks = [task.options(max_retries=0).remote(args.command, one) for one in environments(args, meeting)]
        left, codes = tasks, []
        try:
            while left and not worst(codes):
                done, left = ray.wait(left, num_returns=1)
                codes.append(ray.get(done[0]))
            return worst(codes)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ToldToStop) as lost:
            warn(f"a process was lost ({type(lost).__name__}): all {args.processes} begin again")
        finally:
            for one in left:
                ray.cancel(one, force=True)
            del store
    raise EnvironmentFault(
        f"processes were lost {args.tries + 1} times -> look at the machines, or more --tries"
    )


def main(args: RayTasksArgs) -> None:
    if find_spec("ray") is None:
        raise EnvironmentFault(
            "ENGINE=ray needs ray, which is not installed -> pip install -r requirements-cluster.txt"
        )
    import ray

    address = args.address or os.environ.get("RAY_ADDRESS")
    handlers = {number: signal.getsignal(number) for number in program.STOP_SIGNALS}
    ray.init(address=address, include_dashboard=False, log_to_driver=True)
    for number, handler in handlers.items():  # Ray puts its own in their place, which abort
        signal.signal(number, handler)
    try:
        cards = ray.cluster_resources().get("GPU", 0)
        gpus = args.gpus if args.gpus is not None else 1.0 if cards else 0.0
        say(
            f"ray: {args.processes} tasks of {' '.join(args.command[:1])}, each with {args.cpus:g} CPUs and {gpus:g} GPUs"
        )
        task = ray.remote(num_cpus=args.cpus, num_gpus=gpus)(run_rank)
        code = (as_one if args.together else independent)(ray, task, args)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as lost:
        raise EnvironmentFault(
            f"a task was lost {args.tries + 1} times ({type(lost).__name__}) -> look at the machines, or more --tries"
        ) from None
    finally:
        ray.shutdown()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    program.run(RayTasksArgs, main)
