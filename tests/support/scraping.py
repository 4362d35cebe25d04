"""A scraper of a service's metrics, and ways to wait for what they come to say."""

import time
import urllib.request
from collections.abc import Callable

from prometheus_client import parser
from support.service import LIMIT_S, Service


class Scrape:
    """One answer of a service's."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in parser.text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} stands there twice"
                self.samples[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """Of one series; NaN where it is not there, which equals nothing and is more than nothing."""
        return self.samples.get((name, frozenset(labels.items())), float("nan"))

    @property
    def names(self) -> set[str]:
        """Of all samples."""
        return {name for name, _ in self.samples}

    @property
    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """All of them."""
        return set(self.samples)


def scrape(service: Service, accept: str = "text/plain") -> Scrape:
    """What the service says now."""
    request = urllib.request.Request(service.said["metrics_url"], headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        return Scrape(response.read().decode())


def wait_for_scrape(service: Service, wanted: Callable[[Scrape], bool], what: str) -> Scrape:
    """The first scrape that is as wanted; processes report once a second."""
    deadline_s = time.monotonic() + LIMIT_S
    while not wanted(found := scrape(service)):
        assert time.monotonic() < deadline_s, f"waited {LIMIT_S} s for {what}"
    return found
