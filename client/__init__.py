"""The SDK: `Tuner` for training loops, `Client` and `AsyncClient` for everything else.

Importing it needs numpy and httpx alone; torch is imported when a `Tuner` is given an optimizer.
"""

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
    "ServerError",
    "ServerUnreachable",
    "Session",
    "Tuner",
]
