"""What can go wrong, in a few words. Every message says what was wrong, where, and what to do."""


class MonosemError(Exception):
    """The base of all errors that monosem raises on purpose."""


class ConfigError(MonosemError):
    """A setting is unknown, missing or out of range."""


class HookError(MonosemError):
    """A hook point does not exist in the model."""


class DataError(MonosemError):
    """Text, tokens or activations cannot be used: empty, of the wrong width, not finite."""


class FileError(MonosemError):
    """A file is missing, damaged, or of another format."""


class Interrupted(MonosemError):
    """Long work was stopped by the user; what is done is saved."""


class TrainingInterrupted(Interrupted):
    """The run was stopped by the user; its checkpoint is written."""


class DivergenceError(MonosemError):
    """Numbers have grown out of all bounds, or are numbers no more; what was good before is kept."""


class MismatchError(MonosemError):
    """An SAE and a model (or activations) do not belong together."""


class JudgeError(MonosemError):
    """A judge is not there, refuses, costs too much or answers nonsense; what it has answered is kept."""


class RankError(MonosemError):
    """Processes of one job have lost each other, or do not see the same; what was saved is kept."""
