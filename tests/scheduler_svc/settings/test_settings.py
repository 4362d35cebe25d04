"""Settings: where they come from, what is refused, and that --print-config can be fed back."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.scheduler_svc.settings.exposure import exposure_warnings
from pagewire.scheduler_svc.settings.field import setting_fields
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.sources import (
    Resolved,
    add_flags,
    as_text,
    is_foreign,
    render,
    resolve,
)
from pagewire.scheduler_svc.startup_errors import SettingsError


def parse(*flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return vars(parser.parse_args(flags))


def resolved(*flags: str, environ: dict[str, str] | None = None, config: Path | None = None) -> Resolved:
    return resolve(parse(*flags), environ or {}, None if config is None else str(config))


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "pagewire.toml"


def test_flags_win_over_environment_over_file_over_default(config_file: Path) -> None:
    config_file.write_text("max_num_seqs = 3\nmax_n = 3\nmax_queued = 3\n")
    settings, origins = resolved(
        "--max-num-seqs", "1", environ={"PAGEWIRE_MAX_NUM_SEQS": "2", "PAGEWIRE_MAX_N": "2"}, config=config_file
    )
    assert (settings.max_num_seqs, settings.max_n, settings.max_queued, settings.block_size) == (1, 2, 3, None)
    assert [origins[name] for name in ("max_num_seqs", "max_n", "max_queued", "block_size")] == [
        "--max-num-seqs",
        "PAGEWIRE_MAX_N",
        str(config_file),
        "default",
    ]


def test_a_device_has_defaults_of_its_own(config_file: Path) -> None:
    names = ("max_num_seqs", "max_num_batched_tokens", "max_prefill_tokens_per_step")
    settings, origins = resolved("--device", "cuda")
    assert [getattr(settings, name) for name in names] == [256, 8192, 2048]
    assert [origins[name] for name in names] == ["default of device cuda"] * 3
    for device in ("cpu", "sim", "auto"):
        assert [getattr(resolved("--device", device).settings, name) for name in names] == [64, 1024, 256]

    config_file.write_text('device = "cuda"\nmax_num_seqs = 64\n')
    settings, origins = resolved(environ={"PAGEWIRE_MAX_NUM_BATCHED_TOKENS": "1024"}, config=config_file)
    assert [getattr(settings, name) for name in names] == [64, 1024, 2048]
    assert origins["max_num_seqs"] == str(config_file)
    with pytest.raises(SettingsError, match="max_num_batched_tokens = 100 is less than max_num_seqs = 256"):
        resolved("--device", "cuda", "--max-num-batched-tokens", "100")


def test_every_setting_has_a_flag_a_variable_a_meaning_and_a_default() -> None:
    flags = parse()
    fields = setting_fields(Settings)
    assert set(fields) <= set(flags)
    for field in fields.values():
        assert field.about.help.endswith("."), field.name
        for value in ("10.0.0.7", "50051", "tcp://10.0.0.7:50051", "tcp"):
            beside = {f"PAGEWIRE_{family}": "10.0.0.7" for family in ("SERVICE_HOST", "ADMIN_SERVICE_HOST")}
            assert not is_foreign(field.variable, beside | {field.variable: value}), field.name
        field.check(field.default)
        assert field.optional == bool(field.about.unset), f"{field.name}: what does leaving it out mean?"
    assert Settings() == resolved().settings


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("512M", 512 * 2**20), ("4GiB", 2**32), ("1.5k", 1536), ("2GB", 2 * 10**9), ("1 mib", 2**20)],
)
def test_sizes(text: str, size: int) -> None:
    assert resolved("--kv-cache-bytes", text).settings.kv_cache_bytes == size


TLS = ("--tls-certificate", "c", "--tls-key", "k", "--tls-client-ca", "ca")
REMOTE = (
    *("--tensor-parallel-size", "2", "--remote-workers", "1", "--curve-dir", "keys"),
    *("--worker-transport", "tcp://10.0.0.1:5555", "--distributed-address", "10.0.0.1:5556"),
)


def test_ranks_on_other_hosts_are_warned_of() -> None:
    settings, _ = resolved(*REMOTE)
    assert any("distributed_address = '10.0.0.1:5556' is open" in warning for warning in exposure_warnings(settings))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--max-num-seqs", "0"),
            "max_num_seqs = 0 must be a whole number of 1 to 4,096 sequences (from --max-num-seqs)",
        ),
        (("--max-n", "two"), "max_n = 'two' must be a whole number of 1 to 1,024 outputs (from --max-n)"),
        (("--load-interval-s", "nan"), "load_interval_s = nan must be a number of 0.05 to 60 s"),
        (("--kv-cache-bytes", "4 gallons"), "kv_cache_bytes = '4 gallons' must be a number of bytes"),
        (("--kv-cache-bytes", "9" * 400), "is no size that any machine has"),
        (("--device", "tpu"), "device = 'tpu' must be auto, cpu, cuda or sim (from --device)"),
        (("--device", "sim", "--quantization", "int8"), "quantization = 'int8' is for device cpu, and device = 'sim'"),
        (("--max-num-batched-tokens", "8"), "max_num_batched_tokens = 8 is less than max_num_seqs = 64"),
        (("--hang-timeout-s", "2"), "hang_timeout_s = 2 must be 0 or at least 4"),
        (("--hang-timeout-s", "30", "--load-interval-s", "8"), "hang_timeout_s = 30 must be 0 or at least 32"),
        (("--listen", "50051"), "listen = '50051' must be host:port"),
        (("--listen", "h:70000"), "listen = 'h:70000' must be host:port with a port of 0 to 65535"),
        (("--listen", "h:" + "9" * 5000), "must be host:port with a port of 0 to 65535"),
        (("--listen", "::1:5"), "an IPv6 address stands in brackets"),
        (("--listen", "unix:x"), "the path of a Unix socket must be absolute"),
        (("--listen", "unix:/" + "x" * 120), "the path is 121 bytes long, the limit is 107"),
        (("--listen", "127.0.0.1:50052"), "listen and admin_listen are both '127.0.0.1:50052'"),
        (("--health-listen", "h:0"), "health_listen = 'h:0' needs a port that is not 0"),
        (("--health-listen", "127.0.0.1:50051"), "health_listen = '127.0.0.1:50051' is listen or admin_listen too"),
        (("--health-listen", "50053"), "health_listen = '50053' must be host:port"),
        (("--listen", "unix:/x", "--frontends", "2"), "frontends = 2 cannot share 'unix:/x'"),
        (
            ("--max-request-bytes-in-flight", "2M"),
            "max_request_bytes_in_flight = 2097152 is less than max_message_bytes = 4194304",
        ),
        (("--tls-key", "k.pem"), "tls_key is set and tls_certificate is not"),
        (("--tls-client-ca", "c.pem"), "tls_client_ca = 'c.pem' needs tls_certificate"),
        (("--worker-transport", "tcp://10.0.0.1:5555"), "is TCP and needs curve_dir"),
        (("--worker-transport", "udp://10.0.0.1:5555"), "must be ipc or tcp://host:port"),
        (("--kv-events-replay", "tcp://h:5"), "kv_events_replay = 'tcp://h:5' is of no use without kv_events"),
        (("--kv-events", "tcp://h:5", "--no-enable-prefix-caching"), "kv_events = 'tcp://h:5' needs enable_prefix_c"),
        (("--kv-events", "tcp://h:0"), "kv_events = 'tcp://h:0' needs a port that is not 0"),
        (("--kv-events", "tcp://h"), "kv_events = 'h' must be host:port"),
        (("--kv-events", "udp://h:5"), "kv_events = 'udp://h:5' must be tcp://host:port, tcp://*:port or ipc:///path"),
        (("--kv-events", "ipc://x"), "the path of a Unix socket must be absolute"),
        (("--kv-events", "tcp://h:5", "--kv-events-replay", "tcp://h:5"), "are both 'tcp://h:5'"),
        (("--kv-events", "tcp://h:5", "--kv-events-topic", "x" * 513), "kv_events_topic has 513 bytes; at most 512"),
        (("--curve-dir", "keys"), "curve_dir = 'keys' is of no use with worker_transport = 'ipc'"),
        (("--tensor-parallel-size", "0"), "tensor_parallel_size = 0 must be"),
        ((*REMOTE, "--tensor-parallel-size", "1"), "remote_workers = 1 must be less than tensor_parallel_size = 1"),
        (REMOTE[:4], "remote_workers = 1 needs worker_transport = tcp://host:port"),
        (REMOTE[:-2], "remote_workers = 1 and distributed_address = None: ranks of other hosts need both"),
        (("--distributed-address", "10.0.0.1:5"), "remote_workers = 0 and distributed_address = '10.0.0.1:5'"),
        ((*REMOTE[:-1], "0.0.0.0:5556"), "distributed_address = '0.0.0.0:5556' must name a host and a port"),
        ((*REMOTE[:-1], "10.0.0.1:0"), "distributed_address = '10.0.0.1:0' must name a host and a port"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolved(*flags)
    assert message in str(caught.value)


def test_unknown_names_are_refused_with_a_suggestion(config_file: Path) -> None:
    config_file.write_text("max_num_seq = 3\n")
    with pytest.raises(SettingsError, match="'max_num_seq' is no setting; did you mean max_num_seqs"):
        resolved(config=config_file)
    with pytest.raises(SettingsError, match="PAGEWIRE_LISTENS is no setting; did you mean PAGEWIRE_LISTEN"):
        resolved(environ={"PAGEWIRE_LISTENS": "x"})


def of_a_service(name: str, address: str = "10.0.0.7") -> dict[str, str]:
    """What Kubernetes puts into every pod beside a Service of two ports, the second without a name."""
    prefix = name.upper().replace("-", "_")
    family = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": "50051",
        f"{prefix}_SERVICE_PORT_GRPC": "50051",
        f"{prefix}_SERVICE_PORT_GRPC_ADMIN": "50052",
        f"{prefix}_PORT": f"tcp://{address}:50051",
    }
    for port, protocol in (("50051", "tcp"), ("50052", "udp")):
        each = f"{prefix}_PORT_{port}_{protocol.upper()}"
        family |= {each: f"{protocol}://{address}:{port}", f"{each}_PROTO": protocol}
        family |= {f"{each}_PORT": port, f"{each}_ADDR": address}
    return family


@pytest.mark.parametrize("address", ["10.0.0.7", "fd00::7", "[fd00::7]"])
@pytest.mark.parametrize(
    "name",
    [
        "pagewire",
        "pagewire-admin",
        "pagewire-headless",
        "pagewire-metrics",
        "pagewire-model-max-len",
        "pagewire-listen",
        "pagewire-target",
        "pagewire-config",
        "pagewire-service",
        "pagewire-port",
        "pagewire-2",
    ],
)
def test_the_variables_of_a_neighbouring_service_are_let_through(name: str, address: str) -> None:
    family = of_a_service(name, address)
    assert resolved(environ=family).settings == Settings()
    both = {**of_a_service("pagewire"), **family}
    assert resolved(environ=both | {"PAGEWIRE_MAX_N": "3"}).settings == Settings(max_n=3)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PAGEWIRE_PORT_50051_TCP_ADDR", "10.0.0.7"),
        ("PAGEWIRE_ADMIN_PORT", "tcp://10.0.0.7:1"),
        ("PAGEWIRE_ADMIN_SERVICE_HOST", "10.0.0.7"),
        ("PAGEWIRE_TEST_RUNS", "x"),
        ("PAGEWIRE_TARGET", "x"),
        ("PAGEWIRE_API_KEY", "x"),
    ],
)
def test_what_can_be_nothing_else_needs_no_family(variable: str, value: str) -> None:
    assert resolved(environ={variable: value}).settings == Settings()


def test_the_variables_of_a_dockers_link_are_let_through() -> None:
    link = {"PAGEWIRE_DB_PORT": "tcp://172.17.0.2:5432", "PAGEWIRE_DB_NAME": "/web/db", "PAGEWIRE_DB_ENV_LANG": "C"}
    assert resolved(environ=link).settings == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PAGEWIRE_PORT", "50051"),
        ("PAGEWIRE_LISTEN_PORT", "50051"),
        ("PAGEWIRE_SERVICE_PORT", "50051"),
        ("PAGEWIRE_SERVICE_NAME", "pagewire"),
        ("PAGEWIRE_ADMIN_SERVICE_PORT", "tcp"),
        ("PAGEWIRE_PORT_50051_TCP_ADDR", "10.0.0.7, 10.0.0.8"),
        ("PAGEWIRE_MAX_NUM_SEQ", "4"),
        ("PAGEWIRE_SERVED_MODEL", "x"),
    ],
)
def test_a_mistake_is_no_neighbours_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"environment variable {variable} is no setting"):
        resolved(environ={variable: value})
    with pytest.raises(SettingsError, match="PAGEWIRE_MAX_NUM_SEQ is no setting; did you mean PAGEWIRE_MAX_NUM_SEQS"):
        resolved(environ=of_a_service("pagewire-max") | {"PAGEWIRE_MAX_NUM_SEQ": "4"})


@pytest.mark.parametrize("name", ["model", "listen", "cache_dir", "served_model_name"])
def test_text_that_is_no_utf8_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} = 'caf\\udce9' must be text in UTF-8"):
        resolved(environ={f"PAGEWIRE_{name.upper()}": os.fsdecode(b"caf\xe9")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_n = true", "max_n = True must be a whole number"),
        ("max_n = 2.5", "max_n = 2.5 must be a whole number"),
        ("max_n = [1]", r"max_n = \[1\] must be a whole number"),
        ("listen = 5", "listen = 5 must be text"),
        ("enable_prefix_caching = 1", "enable_prefix_caching = 1 must be true or false"),
        ("max_n = ", "is not TOML"),
        ("max_n = {a = 1}", r"max_n = \{'a': 1\} must be a whole number"),
        ("max_n." + "a." * 2_000 + "a = 1", "max_n = .* must be a whole number"),
        ("max_n = " + "[" * 5_000, "is not TOML: it is nested too deeply"),
        ("max_n = " + "9" * 5_000, "is not TOML"),
        ("max_n = 0x" + "f" * 5_000, "max_n = a int must be a whole number"),
        ("load_interval_s = " + "9" * 400, "load_interval_s = 9* must be a number"),
        ("a." * 20_000 + "a = 1", "is not TOML: it has a line of over"),
    ],
)
def test_a_file_is_held_to_the_same_types(config_file: Path, content: str, message: str) -> None:
    config_file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        resolved(config=config_file)


def test_what_is_no_utf_8_is_a_sentence(config_file: Path) -> None:
    config_file.write_bytes(b"model = '\xff'")
    with pytest.raises(SettingsError, match=f"{config_file} is not TOML: it holds text that is not UTF-8"):
        resolved(config=config_file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        resolved(config=tmp_path / "missing.toml")


def test_the_environment_can_name_the_file(config_file: Path) -> None:
    config_file.write_text("drain_grace_s = 5\n")
    assert resolved(environ={"PAGEWIRE_CONFIG": str(config_file)}).settings.drain_grace_s == 5.0
    assert resolved(environ={"PAGEWIRE_CONFIG": ""}).settings.drain_grace_s == 30.0
    with pytest.raises(SettingsError, match="cannot be read"):  # a flag that names nothing is no flag left out
        resolve({}, {"PAGEWIRE_CONFIG": str(config_file)}, "")


def test_an_empty_variable_unsets_what_may_be_unset() -> None:
    settings = resolved(
        environ={"PAGEWIRE_TLS_KEY": "", "PAGEWIRE_NUM_THREADS": "", "PAGEWIRE_ADMIN_LISTEN": ""}
    ).settings
    assert (settings.tls_key, settings.num_threads, settings.admin_listen) == (None, None, "")


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@given(
    model=_TEXT,
    served_model_name=st.none() | _TEXT.filter(str.strip),  # blanks are an optional setting's way to be unset
    kv_cache_bytes=st.none() | st.integers(1024, 2**50),
    drain_grace_s=st.floats(0, 3600),
    enable_prefix_caching=st.booleans(),
)
def test_the_printed_configuration_reads_back(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    settings = msgspec.structs.replace(Settings(), **values)
    printed = render(Resolved(settings, dict.fromkeys(as_text(settings), "default")))
    file = tmp_path_factory.mktemp("config") / "printed.toml"
    file.write_text(printed, encoding="utf-8")
    assert resolved(config=file).settings == settings
    assert all(
        f"\n{name} = " in printed or f"# {name} is unset" in printed or name == "model" for name in as_text(settings)
    )


def test_print_config_shows_values_and_origins(config_file: Path) -> None:
    config_file.write_text("max_n = 3\n")
    argv = [sys.executable, "-m", "pagewire.scheduler_svc", "serve", "--config", str(config_file), "--block-size", "16"]
    done = subprocess.run(
        [*argv, "--print-config"], capture_output=True, text=True, timeout=60, env={"PAGEWIRE_LISTEN": "127.0.0.1:1"}
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert 'listen = "127.0.0.1:1"  # PAGEWIRE_LISTEN' in lines
    assert f"max_n = 3  # {config_file}" in lines
    assert "block_size = 16  # --block-size" in lines
    assert "max_queued = 1024  # default" in lines


def test_wrong_settings_exit_with_2_and_one_line() -> None:
    argv = [sys.executable, "-m", "pagewire.scheduler_svc", "serve", "--max-num-seqs", "5000"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pagewire: max_num_seqs = 5000 must be a whole number of 1 to 4,096 sequences (from --max-num-seqs)\n"
    )


def test_exposure_is_warned_about() -> None:
    assert exposure_warnings(Settings()) == []
    assert exposure_warnings(Settings(listen="[::1]:5")) == []
    assert "without TLS or API keys" in exposure_warnings(Settings(listen="0.0.0.0:5"))[0]
    assert "API keys travel without TLS" in exposure_warnings(Settings(listen="0.0.0.0:5", api_keys_file="k"))[0]
    tls = {"tls_certificate": "c", "tls_key": "k"}
    assert "without API keys" in exposure_warnings(Settings(listen="0.0.0.0:5", **tls))[0]
    assert exposure_warnings(Settings(listen="0.0.0.0:5", tls_client_ca="ca", **tls)) == []
    assert exposure_warnings(Settings(listen="0.0.0.0:5", api_keys_file="k", **tls)) == []
    assert "can drain this server" in exposure_warnings(Settings(admin_listen="0.0.0.0:5"))[0]
    assert exposure_warnings(Settings(kv_events="tcp://127.0.0.1:5", kv_events_replay="ipc:///run/x")) == []
    assert "reads prompts' token ids" in exposure_warnings(Settings(kv_events="tcp://*:5"))[0]
    assert exposure_warnings(Settings(metrics_listen="127.0.0.1:9090")) == []
    assert "reads tenants' names" in exposure_warnings(Settings(metrics_listen="0.0.0.0:9090"))[0]


@pytest.mark.parametrize("address", ["0.0.0.0:5", "[::]:5", "10.0.0.1:5", "inference.example:5", "[fe80::1]:5"])
@pytest.mark.parametrize("name", ["listen", "admin-listen", "openai"])
def test_what_anyone_could_use_from_elsewhere_is_refused(name: str, address: str) -> None:
    flags = (f"--{name}", address)
    with pytest.raises(SettingsError) as refused:
        resolved(*flags)
    assert str(refused.value).startswith(f"{name.replace('-', '_')} = '{address}' is open to other machines")
    assert "--api-keys-file" in str(refused.value)
    assert "--insecure" in str(refused.value)
    resolved(*flags, "--api-keys-file", "k")
    assert exposure_warnings(resolved(*flags, "--insecure").settings)[-1].startswith("insecure is set")
    certificates = ("--tls-certificate", "c", "--tls-key", "k")
    if name != "openai":  # which has no TLS of its own
        assert "--tls-client-ca" in str(refused.value)
        resolved(*flags, *certificates, "--tls-client-ca", "ca")
        with pytest.raises(SettingsError, match="is open to other machines"):
            resolved(*flags, *certificates)  # it says who serves, not who may call


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--admin-tenants", "ann,,bob"), "admin_tenants = 'ann,,bob' must be names"),
        (("--tenant-limits-file", "f"), "tenant_limits_file = 'f' needs api_keys_file or tls_client_ca"),
        (("--tls-client-identity", "uri"), "is of no use without tls_client_ca"),
        ((*TLS, "--tls-client-identity", "dns", "--api-keys-file", "k"), "is of no use with api_keys_file"),
        (("--tls-client-identity", "cn"), "must be common_name, uri or dns"),
    ],
)
def test_identities_that_would_be_ignored_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolved(*flags)
    resolved(*TLS, "--tls-client-identity", "dns", "--admin-tenants", "ann, bob")


@pytest.mark.parametrize("address", ["127.0.0.1:5", "127.9.9.9:5", "localhost:5", "[::1]:5", "unix:/run/x"])
def test_this_machine_needs_no_credentials(address: str) -> None:
    resolved("--listen", address, "--admin-listen", "127.0.0.1:0")
    resolved("--admin-listen", address)


def test_metrics_for_others_are_the_operators_word() -> None:
    flags = ("--metrics-listen", "0.0.0.0:9090", "--listen", "127.0.0.1:0")
    with pytest.raises(SettingsError, match=r"metrics_listen = '0\.0\.0\.0:9090' is open to other machines"):
        resolved(*flags, "--api-keys-file", "k")
    warnings = exposure_warnings(resolved(*flags, "--insecure").settings)
    assert "metrics_listen = '0.0.0.0:9090' is open" in warnings[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--metrics-listen", "unix:/run/x"), "must be host:port"),
        (("--metrics-listen", "127.0.0.1"), "must be host:port with a port"),
        (("--metrics-listen", "127.0.0.1:70000"), "port of 0 to 65535"),
        (("--metrics-names", "vllm"), "metrics_names = 'vllm' is of no use without metrics_listen"),
        (("--metrics-listen", "127.0.0.1:0", "--metrics-names", "sglang"), "must be pagewire or vllm"),
    ],
)
def test_metrics_settings_that_make_no_sense_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolved(*flags)


def test_kv_events_for_others_are_the_operators_word() -> None:
    for flags in (
        ("--kv-events", "tcp://*:5"),
        ("--kv-events", "ipc:///run/x", "--kv-events-replay", "tcp://10.0.0.1:5"),
    ):
        with pytest.raises(SettingsError, match=f"{flags[-2][2:].replace('-', '_')} = .* is open to other machines"):
            resolved(*flags, "--api-keys-file", "k")
        resolved(*flags, "--insecure")
    resolved("--kv-events", "tcp://127.0.0.1:5")


def test_the_supervisor_starts_without_heavy_imports() -> None:
    heavy = "numpy torch gguf tokenizers huggingface_hub transformers grpc zmq jinja2 rich"
    code = (
        "import sys, pagewire.scheduler_svc.__main__, pagewire.scheduler_svc.serving\n"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
