"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "lgpl_requests", "Requests for pictures.", ["status"], registry=registry
        )
        self.pictures = Counter("lgpl_pictures", "Pictures sent.", registry=registry)
        self.seconds = Histogram(
            "lgpl_request_seconds",
            "Time of a request for pictures that was answered.",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "lgpl_batch_pictures",
            "Pictures of a batch.",
            buckets=[2**i for i in range(9)],
            registry=registry,
        )
        self.waiting = Gauge("lgpl_waiting_pictures", "Pictures in the queue.", registry=registry)
