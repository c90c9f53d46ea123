"""An alert's whole way: the service ends, Prometheus notices, Alertmanager shows the alert and notifies a receiver."""

from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from tests.support.alertmanager import Alertmanager, alerting
from tests.support.processes import PATIENCE_S, Process, started
from tests.support.prometheus import Prometheus, scraping
from tests.support.waiting import wait_until
from tools.dashboards.bounds import DOCS_URL

pytestmark = pytest.mark.slow


@pytest.fixture
def watched(bundle_folder: Path, tmp_path: Path) -> Iterator[tuple[Process, Prometheus, Alertmanager]]:
    with (
        started(bundle_folder) as service,
        alerting(tmp_path) as alertmanager,
        scraping(service.port, tmp_path, alertmanager=alertmanager.port, is_patient=False) as prometheus,
    ):
        yield service, prometheus, alertmanager


def states(alertmanager: Alertmanager) -> dict[tuple[str, str], str]:
    """Return alert and instance -> active or suppressed."""
    return {
        (alert["labels"]["alertname"], alert["labels"].get("instance", "")): alert["status"]["state"]
        for alert in alertmanager.alerts()
    }


def notified(alertmanager: Alertmanager, labels: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the receiver that got an alert with these labels, and the alert."""
    try:
        while True:
            message = alertmanager.messages.get(timeout=PATIENCE_S)
            for alert in message["alerts"]:
                if labels.items() <= alert["labels"].items():
                    return message["receiver"], alert
    except Empty:
        pytest.fail(f"no message about {labels}")


def test_a_service_that_ends_is_an_alert_that_reaches_the_receiver_with_its_runbook(
    watched: tuple[Process, Prometheus, Alertmanager],
) -> None:
    service, prometheus, alertmanager = watched
    wait_until(lambda: bool(prometheus.query('up{job="tinyrm"} == 1')), "the service is scraped")
    instance = f"127.0.0.1:{service.port}"
    assert ("TinyRMDown", instance) not in states(alertmanager)
    service.popen.kill()

    wait_until(lambda: states(alertmanager).get(("TinyRMDown", instance)) == "active", "Alertmanager has the alert")
    receiver, alert = notified(alertmanager, {"alertname": "TinyRMDown", "instance": instance})
    assert receiver == "call"
    assert alert["annotations"] == {
        "summary": f"{instance} does not answer scrapes",
        "runbook_url": f"{DOCS_URL}/operations/#tinyrmdown",
    }


def test_what_follows_from_another_alert_is_suppressed(tmp_path: Path) -> None:
    job = {"job": "tinyrm", "severity": "warning"}
    gone, there = job | {"instance": "gone:8000"}, job | {"instance": "there:8000"}
    with alerting(tmp_path) as alertmanager:
        alertmanager.post(
            gone | {"alertname": "TinyRMDown", "severity": "critical"},
            gone | {"alertname": "TinyRMEventLoopLate"},
            there | {"alertname": "TinyRMEventLoopLate"},
            there | {"alertname": "TinyRMEngineDown", "severity": "critical"},
            there | {"alertname": "TinyRMShedding"},
            job | {"alertname": "TinyRMNoTraffic"},
            job | {"alertname": "TinyRMTruncation"},
            job | {"alertname": "TinyRMLatencyBurnFast", "slo": "latency"},
            job | {"alertname": "TinyRMLatencyBurnSlow", "slo": "latency"},
            job | {"alertname": "TinyRMAvailabilityBurnSlow", "slo": "availability"},
        )
        expected = {
            ("TinyRMDown", "gone:8000"): "active",
            ("TinyRMEventLoopLate", "gone:8000"): "suppressed",
            ("TinyRMEventLoopLate", "there:8000"): "suppressed",
            ("TinyRMEngineDown", "there:8000"): "active",
            ("TinyRMShedding", "there:8000"): "suppressed",
            ("TinyRMNoTraffic", ""): "suppressed",
            ("TinyRMTruncation", ""): "active",
            ("TinyRMLatencyBurnFast", ""): "active",
            ("TinyRMLatencyBurnSlow", ""): "suppressed",
            ("TinyRMAvailabilityBurnSlow", ""): "active",
        }
        # An alert is unprocessed until its group has been looked at.
        wait_until(lambda: states(alertmanager) == expected, f"the states are {expected}")
