"""SQL on the files of a folder: questions that only read, and processes that answer them and can be ended."""

from monosem.sql.limited import Limited, Stopped
from monosem.sql.question import condition
from monosem.sql.readable import readable
from monosem.sql.tables import Tables

__all__ = ["Limited", "Stopped", "Tables", "condition", "readable"]
