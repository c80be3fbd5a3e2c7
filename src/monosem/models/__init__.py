"""Subject models: hook points under the same names everywhere, capture, edit, generate."""

from monosem.models.edits import Edit, EditContext, EditReport
from monosem.models.families import FAMILIES
from monosem.models.hooks import HookPoint
from monosem.models.load import BUNDLED, default_device, load_model
from monosem.models.model_set import ModelSet
from monosem.models.replay import Replay
from monosem.models.subject import SubjectModel
from monosem.models.writing import Sampling, Written, write

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "Edit",
    "EditContext",
    "EditReport",
    "HookPoint",
    "ModelSet",
    "Replay",
    "Sampling",
    "SubjectModel",
    "Written",
    "default_device",
    "load_model",
    "write",
]
