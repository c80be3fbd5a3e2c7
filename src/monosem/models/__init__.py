"""Subject models: hook points under the same names everywhere, capture, edit, generate."""

from monosem.models.families import FAMILIES
from monosem.models.hooks import HookPoint
from monosem.models.load import BUNDLED, load_model
from monosem.models.model_set import ModelSet
from monosem.models.replay import Replay
from monosem.models.subject import Edit, EditContext, SubjectModel

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "Edit",
    "EditContext",
    "HookPoint",
    "ModelSet",
    "Replay",
    "SubjectModel",
    "load_model",
]
