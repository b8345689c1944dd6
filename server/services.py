"""Everything the application runs on, opened together and closed together."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigurationError
from .auth import KeyRing
from .catalog import Catalog, load_catalog
from .engine import Engine
from .ledger import Ledger
from .lifecycle import Lifecycle
from .metrics import Metrics
from .settings import Settings, is_loopback
from .sqlite_store import SqliteStore
from .store import Store


@dataclass(frozen=True)
class Services:
    """What routes use; one per application, on one event loop."""

    settings: Settings
    store: Store
    catalog: Catalog
    metrics: Metrics
    lifecycle: Lifecycle
    engine: Engine
    keys: KeyRing

    async def close(self) -> None:
        """Finish queued decisions, then close the store."""
        await self.engine.close()
        self.store.close()


def open_services(settings: Settings) -> Services:
    """Load the policies and open the store.

    Raises:
        ConfigurationError: No policy, an unusable database, or a host that other machines reach
            while there is no key.
        ArtifactError: A policy file of the folder is broken.
    """
    catalog = load_catalog(settings.policies_folder)
    store = SqliteStore(
        settings.database, durability=settings.durability, timeout=settings.store_timeout
    )
    try:
        if not is_loopback(settings.host) and not store.list_keys():
            raise ConfigurationError(
                f"The host {settings.host} can be reached from other machines and there is no "
                f"key in {settings.database}. Make one: lhopt keys create --name NAME --database "
                f"{settings.database}; or serve on 127.0.0.1."
            )
    except BaseException:
        store.close()
        raise
    metrics = Metrics()
    ledger = Ledger(store, catalog, metrics, settings.cache_sessions)
    return Services(
        settings=settings,
        store=store,
        catalog=catalog,
        metrics=metrics,
        lifecycle=Lifecycle(store, catalog, ledger, settings.max_sessions, settings.idle_days),
        engine=Engine(
            ledger,
            metrics,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            deadline=settings.deadline,
        ),
        keys=KeyRing(store, settings.key_refresh),
    )
