"""Subject models: hook points under the same names everywhere, capture, edit, generate."""

from monosem.models.hooks import HookPoint
from monosem.models.load import BUNDLED, load_model
from monosem.models.subject import Edit, EditContext, SubjectModel

__all__ = ["BUNDLED", "Edit", "EditContext", "HookPoint", "SubjectModel", "load_model"]
