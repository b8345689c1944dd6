"""The SDK: `Tuner` for training loops, `Client` and `AsyncClient` for everything else.

`Statistics`, `Situation` and `Decision` are what `Session.decide` takes and gives.

Importing it needs numpy and httpx alone; torch is imported when a `Tuner` is given an optimizer.
"""

from ..core.actions import Decision
from ..core.features import Situation
from ..core.statistics import Statistics
from .asynchronous import AsyncClient, AsyncSession
from .blocking import Client, Session
from .errors import AnswerError, ApiError, DeadlineExceeded, ServerError, ServerUnreachable
from .tuner import Tuner

__all__ = [
    "AnswerError",
    "ApiError",
    "AsyncClient",
    "AsyncSession",
    "Client",
    "DeadlineExceeded",
    "Decision",
    "ServerError",
    "ServerUnreachable",
    "Session",
    "Situation",
    "Statistics",
    "Tuner",
]
