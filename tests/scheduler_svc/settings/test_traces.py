"""Where traces go: the setting, the standard variables, and what stands against them."""

import logging

import pytest

from pagewire.scheduler_svc.settings import traces
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.traces import traces_endpoint
from pagewire.scheduler_svc.startup_errors import SettingsError

URL, OTHER = "http://collector:4317", "https://other:4317"
ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        (None, {}, None),
        (URL, {}, URL),
        (URL, {ENDPOINT: OTHER}, URL),
        (None, {ENDPOINT: OTHER}, OTHER),
        (None, {ENDPOINT: OTHER, TRACES_ENDPOINT: URL}, URL),
        (None, {ENDPOINT: ""}, None),
        (None, {ENDPOINT: OTHER, "OTEL_TRACES_EXPORTER": "none"}, None),
        (None, {ENDPOINT: OTHER, "OTEL_TRACES_EXPORTER": "otlp"}, OTHER),
        (URL, {"OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_who_decides(setting: str | None, environ: dict[str, str], expected: str | None) -> None:
    assert traces_endpoint(Settings(otlp_endpoint=setting), environ) == expected


@pytest.mark.parametrize(
    "url",
    [
        "collector:4317",
        "http://collector",
        "grpc://collector:4317",
        "http://:4317",
        "http://c:99999",
        URL + "/v1/traces",
    ],
)
def test_a_wrong_address_is_refused_by_name(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^otlp_endpoint = .* must be http://host:port or https://host:port"):
        traces_endpoint(Settings(otlp_endpoint=url), {})
    with pytest.raises(SettingsError, match=f"^{ENDPOINT} = "):
        traces_endpoint(Settings(), {ENDPOINT: url})


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as refused:
        traces_endpoint(Settings(otlp_endpoint="http://ann:secret@collector:4317"), {})
    assert "secret" not in str(refused.value)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(traces, "_NEEDED", ("opentelemetry.nothing_of_the_kind",))
    with pytest.raises(SettingsError, match="pip install"):
        traces_endpoint(Settings(otlp_endpoint=URL), {})
    with caplog.at_level(logging.WARNING):
        assert traces_endpoint(Settings(), {ENDPOINT: URL}) is None
    assert "pip install" in caplog.text
