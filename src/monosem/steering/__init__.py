"""Steering: vectors, their doses, what they are made of; prompts read and mended by features."""

from monosem.steering.avoid import Avoidance, avoid
from monosem.steering.cleaning import CleanedTask, clean_task_vector, task_vector
from monosem.steering.decompose import Decomposition, decompose
from monosem.steering.diagnose import Diagnosis, diagnose
from monosem.steering.dose import DoseResponse, dose_response
from monosem.steering.tasks import Form
from monosem.steering.vectors import SteeringVector, steering_vector

__all__ = [
    "Avoidance",
    "CleanedTask",
    "Decomposition",
    "Diagnosis",
    "DoseResponse",
    "Form",
    "SteeringVector",
    "avoid",
    "clean_task_vector",
    "decompose",
    "diagnose",
    "dose_response",
    "steering_vector",
    "task_vector",
]
