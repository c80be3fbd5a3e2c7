"""Several processes that work as one, started by `torchrun`: who they are, what they say to each other, what is whose.

    group.py      a group of processes, and what they do together; a group of one does nothing
    memory.py     memory that the processes of one machine have in common
    division.py   how a batch's rows and a dictionary's latents are divided, and sums over what others hold
    alive.py      which process has stopped
    job.py        beginning and ending: one line where one of them fails

Whoever computes a mean over rows or a sum over latents asks here for the part that others have. With one process it is
all there already, and nothing is asked: there is no other code for several.
"""

from monosem.ranks.alive import at_work
from monosem.ranks.division import (
    CommonWeight,
    Division,
    a_row,
    common_weight,
    divided,
    division,
    latents_in_all,
    mean_over_rows,
    mean_square,
    over_latents,
    over_rows,
    read_by_all,
    rows_in_all,
)
from monosem.ranks.group import ALONE, Group
from monosem.ranks.job import agreed, any_of_all, by_itself, everyone, first_alone_in, first_to_fail, working_together
from monosem.ranks.memory import common_memory

__all__ = [
    "ALONE",
    "CommonWeight",
    "Division",
    "Group",
    "a_row",
    "agreed",
    "any_of_all",
    "at_work",
    "by_itself",
    "common_memory",
    "common_weight",
    "divided",
    "division",
    "everyone",
    "first_alone_in",
    "first_to_fail",
    "latents_in_all",
    "mean_over_rows",
    "mean_square",
    "over_latents",
    "over_rows",
    "read_by_all",
    "rows_in_all",
    "working_together",
]
