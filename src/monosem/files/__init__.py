"""The one layer through which files are read and written. Whatever a file holds, what goes wrong is one `FileError`.

Reading: only regular files, limits on size, depth and declared shape before memory is taken, types by name of the
field. Writing: whole or not at all, and JSON that every reader takes.
"""

from monosem.files.archives import Bomb, decompressed, opened, require_room
from monosem.files.arrays import (
    from_bfloat16,
    npz_member,
    npz_shapes,
    read_array,
    read_arrays,
    read_idx,
    read_safetensors,
    require_whole,
    safetensors_shapes,
)
from monosem.files.checked import DAMAGE, fits, one_line, reading, regular_file
from monosem.files.plain import json_value, parse_json, read_bytes, read_json, read_json_lines, read_text
from monosem.files.settings import Settings, named_folder
from monosem.files.sharded import file_with, sharded_tensors, write_sharded
from monosem.files.tables import open_parquet
from monosem.files.tensors import Stacked, Stored, plain_values, stored_tensors
from monosem.files.written import (
    append_json_line,
    as_json,
    replacing,
    require_place,
    write_bytes,
    write_json,
    write_safetensors,
    write_text,
    writing,
)
from monosem.files.yaml_files import parse_yaml, read_yaml

__all__ = [
    "DAMAGE",
    "Bomb",
    "Settings",
    "Stacked",
    "Stored",
    "append_json_line",
    "as_json",
    "decompressed",
    "file_with",
    "fits",
    "from_bfloat16",
    "json_value",
    "named_folder",
    "npz_member",
    "npz_shapes",
    "one_line",
    "open_parquet",
    "opened",
    "parse_json",
    "parse_yaml",
    "plain_values",
    "read_array",
    "read_arrays",
    "read_bytes",
    "read_idx",
    "read_json",
    "read_json_lines",
    "read_safetensors",
    "read_text",
    "read_yaml",
    "reading",
    "regular_file",
    "replacing",
    "require_place",
    "require_room",
    "require_whole",
    "safetensors_shapes",
    "sharded_tensors",
    "stored_tensors",
    "write_bytes",
    "write_json",
    "write_safetensors",
    "write_sharded",
    "write_text",
    "writing",
]
