"""Long work: says where it is, can be stopped at safe places, is alone in its folder, knows the memory there is."""

from monosem.work.lock import alone_in
from monosem.work.memory import free_memory, memory_here
from monosem.work.progress import Job, Stage, as_job, doing, each, job, stage
from monosem.work.stop import Stopped, StopRequest, may_stop_here

__all__ = [
    "Job",
    "Stage",
    "StopRequest",
    "Stopped",
    "alone_in",
    "as_job",
    "doing",
    "each",
    "free_memory",
    "job",
    "may_stop_here",
    "memory_here",
    "stage",
]
