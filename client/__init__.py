"""The SDK: `Tuner` for training loops, `Client` and `AsyncClient` for everything else.

Importing it needs numpy and httpx alone; torch is imported when a `Tuner` is given an optimizer.
"""

from .errors import AnswerError, ApiError, DeadlineExceeded, ServerError, ServerUnreachable
from .tuner import Tuner

__all__ = [
    "AnswerError",
    "ApiError",
    "DeadlineExceeded",
    "ServerError",
    "ServerUnreachable",
    "Tuner",
]
