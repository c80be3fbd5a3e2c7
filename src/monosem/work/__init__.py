"""Long work: it says where it is, can be stopped at safe places, and is alone in its folder."""

from monosem.work.lock import alone_in
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
    "job",
    "may_stop_here",
    "stage",
]
