"""Findings of hubhead doctor: levels and remedies for what a machine may look like."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from serving.commands.doctor import doctor
from serving.diagnostics import checks, engines, environment, installation, machine, programs
from serving.diagnostics.cgroups import Limits, read_limits
from serving.diagnostics.engines import Library
from serving.diagnostics.finding import Finding, Level

GIGABYTE = 10**9


def install(
    monkeypatch: pytest.MonkeyPatch,
    requires: Sequence[str],
    installed: dict[str, str],
    extras: Sequence[str] = (),
) -> None:
    """Make hubhead have these requirements, and these packages be installed."""

    def find(package: str) -> str:
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    names = SimpleNamespace(get_all=lambda _key: list(extras))
    monkeypatch.setattr(metadata, "requires", lambda _name: list(requires))
    monkeypatch.setattr(metadata, "metadata", lambda _name: names)
    monkeypatch.setattr(metadata, "version", find)


REQUIRES = (
    "click>=8.1",
    'tensorflow<2.22,>=2.20; extra == "serve"',
    'aiohttp>=3.10; extra == "serve"',
    'hubhead[serve]; extra == "batch"',
    'pyarrow>=17; extra == "batch"',
    'numpy>=99; extra == "serve" and sys_platform == "os2"',
)


def test_extra_that_nobody_installed_is_fine_and_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, REQUIRES, {"hubhead": "1", "click": "8.2", "pyarrow": "18"}, ["serve", "dev"])
    (serve,) = installation.check_extras()
    assert serve == Finding("extra serve", Level.OK, "not installed", "pip install 'hubhead[serve]'")


def test_extra_of_which_packages_are_missing_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, REQUIRES, {"hubhead": "1", "tensorflow": "2.21.0"}, ["serve"])
    (serve,) = installation.check_extras()
    assert (serve.level, serve.found) == (Level.WARNING, "incomplete; missing: aiohttp>=3.10")


def test_extra_with_another_version_is_a_warning_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"hubhead": "1", "tensorflow": "2.19.1", "aiohttp": "3.11", "pyarrow": "18"}
    install(monkeypatch, REQUIRES, versions, ["batch"])
    (batch,) = installation.check_extras()
    assert batch.level is Level.WARNING
    assert batch.found == "incomplete; tensorflow is 2.19.1, expected <2.22,>=2.20"


def test_extra_includes_those_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"hubhead": "1", "tensorflow": "2.21.0", "aiohttp": "3.11", "pyarrow": "18"}
    install(monkeypatch, REQUIRES, versions, ["batch", "serve"])
    assert [one.found for one in installation.check_extras()] == ["complete", "complete"]


def test_core_with_another_version_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, REQUIRES, {"hubhead": "1.2", "click": "8.0"})
    (core,) = installation.check_packages()
    assert core.level is Level.WARNING
    assert "click is 8.0, expected >=8.1" in core.found


def test_sources_without_installation_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    for function in ("requires", "metadata", "version"):
        monkeypatch.setattr(metadata, function, fail)
    (found,) = installation.check_packages()
    assert (found.level, "pip install" in found.remedy) == (Level.WARNING, True)
    assert list(installation.check_extras()) == []


def test_all_extras_for_users_are_reported_and_no_other() -> None:
    assert set(installation.list_extras()) >= {"serve", "batch", "train", "formats", "query", "metrics", "s3"}
    assert not set(installation.list_extras()) & installation.FOR_DEVELOPERS


GOOD = {"version": "2.21.0", "seconds": 3.0, "gpus": []}


@pytest.mark.parametrize(
    ("tensorflow", "onnx", "level", "expected"),
    [
        (Library(None), Library(None), Level.OK, "none: no models run in this installation"),
        (Library("2.21", GOOD), Library("1.32", GOOD), Level.OK, "onnx on "),
        (Library("2.21", GOOD), Library(None), Level.OK, "tensorflow on "),
        (
            Library("2.21", GOOD | {"gpus": ["/gpu:0"]}),
            Library("1.32", GOOD),
            Level.OK,
            "tensorflow, on 1 GPUs",
        ),
        (Library("2.21", GOOD), Library("1.32", {}, "broken"), Level.ERROR, "onnx on "),
        (Library("2.21", {}, "broken"), Library("1.32", GOOD), Level.ERROR, "none on "),
    ],
)
def test_engine_that_auto_chooses(tensorflow: Library, onnx: Library, level: Level, expected: str) -> None:
    found = engines.describe_choice(tensorflow, onnx)
    assert (found.level, expected in found.found) == (level, True), found
    assert bool(found.remedy) is (level is Level.ERROR)


def test_broken_tensorflow_is_an_error_with_the_reason() -> None:
    crashed = engines.describe_tensorflow(Library("2.21", {}, "it was ended by SIGILL"))
    assert (crashed.level, "AVX" in crashed.remedy) == (Level.ERROR, True)
    broken = engines.describe_tensorflow(Library("2.21", {}, "ImportError: libfoo.so"))
    assert (broken.level, "libfoo.so" in broken.found) == (Level.ERROR, True)
    assert "force-reinstall" in broken.remedy


def test_missing_onnx_runtime_is_a_warning_only_where_models_run() -> None:
    assert engines.describe_onnx(Library(None), needed=True).level is Level.WARNING
    assert engines.describe_onnx(Library(None), needed=False).level is Level.OK


def test_quota_below_the_cores_is_a_warning() -> None:
    assert machine.describe_cores(8, 8, 2.5).level is Level.WARNING
    assert "2.5" in machine.describe_cores(8, 8, 2.5).found
    for quota in (None, 2.0, 8.0):
        assert machine.describe_cores(2, 8, quota) == Finding("cores", Level.OK, "2 of 8 usable")


@pytest.mark.parametrize(
    ("available", "limit", "left", "level"),
    [
        (20 * GIGABYTE, None, None, Level.OK),
        (20 * GIGABYTE, 4 * GIGABYTE, 3 * GIGABYTE, Level.OK),
        (20 * GIGABYTE, 4 * GIGABYTE, 1 * GIGABYTE, Level.WARNING),
        (20 * GIGABYTE, 1 * GIGABYTE, GIGABYTE // 2, Level.ERROR),
        (GIGABYTE // 2, None, None, Level.ERROR),
        (None, None, None, Level.OK),
    ],
)
def test_memory_is_the_least_of_machine_and_container(
    available: int | None, limit: int | None, left: int | None, level: Level
) -> None:
    assert machine.describe_memory(available, limit, left).level is level


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_limits_of_cgroup_v2_are_the_smallest_up_to_the_root(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "membership": "0::/pods/one",
            "root/pods/cpu.max": "200000 100000",
            "root/pods/one/cpu.max": "max 100000",
            "root/pods/memory.max": "4000",
            "root/pods/memory.current": "3900",
            "root/pods/one/memory.max": "2000",
            "root/pods/one/memory.current": "1000",
        },
    )
    assert read_limits(tmp_path / "root", tmp_path / "membership") == Limits(2.0, 2000, 100)


def test_limits_of_cgroup_v1_and_groups_outside_of_the_container(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "membership": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x",
            "root/memory/memory.limit_in_bytes": "3000",
            "root/memory/memory.usage_in_bytes": "1000",
            "root/cpu/cpu.cfs_quota_us": "150000",
            "root/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert read_limits(tmp_path / "root", tmp_path / "membership") == Limits(1.5, 3000, 2000)


def test_no_limits_without_control_groups_or_with_the_largest_number(tmp_path: Path) -> None:
    assert read_limits(tmp_path, tmp_path / "membership") == Limits()
    limits = {"root/memory/memory.limit_in_bytes": "9223372036854771712", "root/cpu/cpu.cfs_quota_us": "-1"}
    write_files(
        tmp_path, {"membership": "4:memory:/\n3:cpu:/", **limits, "root/cpu/cpu.cfs_period_us": "100000"}
    )
    assert read_limits(tmp_path / "root", tmp_path / "membership") == Limits()


def test_cpu_without_avx_is_an_error_on_x86(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("model name: Atom\nflags\t\t: fpu sse sse2\nflags\t\t: fpu\n")
    assert machine.read_cpu_features(tmp_path / "cpuinfo") == {"fpu", "sse", "sse2"}
    monkeypatch.setattr(machine, "read_cpu_features", lambda: frozenset({"fpu"}))
    for architecture, level in (("x86_64", Level.ERROR), ("aarch64", Level.OK)):
        monkeypatch.setattr("platform.machine", lambda name=architecture: name)
        assert next(machine.check_cpu()).level is level


def test_directory_need_not_exist_but_has_to_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = machine.check_directory("cache directory", tmp_path / "new" / "cache", "HUBHEAD_CACHE_DIR")
    assert good.level is Level.OK
    assert list(tmp_path.iterdir()) == []

    def fail(**_options: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    bad = machine.check_directory("cache directory", tmp_path, "HUBHEAD_CACHE_DIR")
    assert (bad.level, "Read-only file system" in bad.found) == (Level.ERROR, True)
    assert "HUBHEAD_CACHE_DIR" in bad.remedy


@pytest.mark.parametrize(
    ("free", "level"), [(10**7, Level.ERROR), (10**9, Level.WARNING), (10**10, Level.OK)]
)
def test_little_disk_space_is_a_warning_and_none_an_error(
    free: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    assert machine.check_directory("temporary files", tmp_path, "TMPDIR").level is level


def test_user_without_a_home_directory_is_asked_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("no home")

    for name in ("HUBHEAD_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fail)
    found = {one.check: one for one in machine.check_directories()}
    assert found["home directory"].level is Level.OK
    assert found["cache directory"].level is Level.ERROR
    assert "HUBHEAD_CACHE_DIR" in found["cache directory"].remedy


def test_clock_before_the_installation_is_a_warning() -> None:
    assert environment.describe_clock(1e9, 2e9).level is Level.WARNING
    assert environment.describe_clock(2e9 - 60, 2e9).level is Level.OK  # a copied file may be a little ahead


def test_encodings_other_than_utf8_are_a_warning() -> None:
    assert environment.describe_encodings("utf-8", "UTF-8", "utf8").level is Level.OK
    found = environment.describe_encodings("utf-8", "ANSI_X3.4-1968", "ascii")
    assert (found.level, "LANG" in found.remedy) == (Level.WARNING, True)


def test_proxies_are_shown_without_passwords_and_localhost_should_be_exempt() -> None:
    proxies = {"https": "http://user:hunter2@proxy:3128"}
    found = environment.describe_proxies(proxies)
    assert (found.level, "no_proxy" in found.remedy) == (Level.WARNING, True)
    assert "hunter2" not in found.found
    assert "proxy:3128" in found.found
    assert environment.describe_proxies({**proxies, "no": "example.org, localhost"}).level is Level.OK
    assert environment.describe_proxies({"ftp": "http://proxy"}).found == "none"


def test_job_server_has_to_fit_the_version_of_beam(tmp_path: Path) -> None:
    jars = tmp_path / ".apache_beam" / "cache" / "jars"
    assert programs.find_job_servers(tmp_path) == []
    jars.mkdir(parents=True)
    (jars / "beam-runners-flink-1.19-job-server-2.77.0.jar").touch()
    (jars / "other.jar").touch()
    names = programs.find_job_servers(tmp_path)
    assert "job-server-2.77.0" in programs.describe_job_servers("2.77.0", names).found
    assert "none for Beam 2.78.0" in programs.describe_job_servers("2.78.0", names).found


def test_old_kubectl_is_a_warning() -> None:
    assert programs.describe_kubectl("v1.26.3").level is Level.WARNING
    assert programs.describe_kubectl("v1.27.0").level is Level.OK
    assert programs.describe_kubectl("v2.0.0-alpha").level is Level.OK


def test_missing_programs_are_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    found = [next(programs.check_java()), *programs.check_kubectl()]
    assert [(one.level, one.found[:13]) for one in found] == [(Level.OK, "not installed")] * 2


def check_nothing() -> list[Finding]:
    return [Finding("nothing", Level.OK, "fine")]


def check_odd_things() -> list[Finding]:
    raise ZeroDivisionError("odd")


def test_failing_check_is_a_finding_and_the_others_go_on() -> None:
    first, second = checks.run_checks([check_odd_things, check_nothing])
    assert (first.check, first.level) == ("odd things", Level.WARNING)
    assert "ZeroDivisionError: odd" in first.found
    assert second.level is Level.OK


@pytest.mark.parametrize(("levels", "code"), [("ok", 0), ("ok warning", 0), ("warning error ok", 1)])
def test_exit_code_is_1_if_something_prevents_work(
    levels: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding(f"check {at}", Level(name), "found\x1b[31m", "do so")
        for at, name in enumerate(levels.split())
    ]
    monkeypatch.setattr(checks, "run_checks", lambda: findings)
    as_json, table, quiet = (
        CliRunner().invoke(doctor, words, standalone_mode=False) for words in (["--json"], [], ["--quiet"])
    )
    assert as_json.return_value == table.return_value == quiet.return_value == code
    record = json.loads(as_json.stdout)
    assert (record["ok"], [one["level"] for one in record["findings"]]) == (not code, levels.split())
    for shown in (as_json, table, quiet):
        assert "\x1b" not in shown.stdout
    assert len(re.findall("check [0-9]", table.stdout)) == len(findings)
    assert len(re.findall("check [0-9]", quiet.stdout)) == len(findings) - levels.split().count("ok")
