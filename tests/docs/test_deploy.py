"""What cannot be run here, Docker, Kubernetes, systemd and GitHub, is held against the project: paths, commands, variables, volumes."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from benchbridge_plugin.cli import bridge
from benchbridge_plugin.config import BridgeConfig, from_environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples/deploy"


def takes(words: Sequence[str]) -> None:
    """Whether `benchbridge <words>` is a command with options that it has. Raises click's error if not."""
    group = bridge.make_context(
        "benchbridge", list(words), resilient_parsing=True
    )  # click keeps what a command makes of its group's settings
    bridge.commands[words[0]].make_context(words[0], list(words[1:]), parent=group)


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def manifests() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))}


def configured(variables: Mapping[str, str], tmp_path: Path) -> Mapping[str, object]:
    """What the bridge makes of the variables; a file with a secret is one of ours here."""
    secret = tmp_path / "secret"
    secret.write_text("key")
    return from_environment({name: str(secret) if name.endswith("_FILE") else value for name, value in variables.items()})


def below(path: str, mounts: Sequence[str]) -> bool:
    return any(Path(path).is_relative_to(mount) for mount in mounts)


def test_the_image_copies_what_there_is_and_starts_a_command() -> None:
    """All that building a wheel needs; a user with a number, so that Kubernetes can see that it is not root."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert {"setup.cfg", "pyproject.toml", "README.md", "benchbridge_plugin"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)[0]) == ["benchbridge"]
    takes(json.loads(re.findall(r"^CMD (.+)$", text, re.MULTILINE)[0]))
    user = re.findall(r"^USER (\d+)$", text, re.MULTILINE)[0]
    assert int(user) == manifests()["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"--uid {user} " in text


def test_compose_builds_that_image_and_mounts_what_its_variables_name(tmp_path: Path) -> None:
    """The benchmark file read-only, the ledger on a volume, the key as a secret."""
    document = compose()
    service = document["services"]["benchbridge"]
    context = (DEPLOY / service["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / service["build"]["dockerfile"]).is_file()
    takes(service["command"])
    settings = configured(service["environment"], tmp_path)
    mounts = {target: (source, mode) for source, target, mode in (f"{volume}:rw".split(":")[:3] for volume in service["volumes"])}
    assert mounts["/benchmarks"] == (".", "ro")
    assert mounts["/data"][0] in document["volumes"]
    assert below(str(settings["benchmark_db_path"]), ["/benchmarks"])
    assert below(str(settings["ledger_url"]), ["/data"])
    assert below(str(settings["report_output_dir"]), ["/data"])
    secret = Path(service["environment"]["BENCHBRIDGE_API_KEY_FILE"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in service["secrets"]
    assert secret.name in document["secrets"]
    assert float(service["stop_grace_period"].removesuffix("s")) > BridgeConfig().shutdown_timeout_s


def test_the_manifest_mounts_what_its_variables_name(tmp_path: Path) -> None:
    """One replica that is replaced and not doubled, since the ledger is a file."""
    found = manifests()
    spec = found["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    takes(container["args"])
    variables = {one["name"]: one["value"] for one in container["env"]}
    settings = configured(variables, tmp_path)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert below(str(settings["benchmark_db_path"]), [path for path, mount in mounts.items() if mount.get("readOnly")])
    writable = [path for path, mount in mounts.items() if not mount.get("readOnly")]
    assert below(str(settings["ledger_url"]), writable)
    assert below(str(settings["report_output_dir"]), writable)
    assert below(variables["BENCHBRIDGE_API_KEY_FILE"], ["/secrets"])
    claim = volumes["ledger"]["persistentVolumeClaim"]["claimName"]
    assert claim == found["PersistentVolumeClaim"]["metadata"]["name"]
    page = (ROOT / "docs/tasks/kubernetes.md").read_text(encoding="utf-8")
    assert f"secret generic {volumes['secrets']['secret']['secretName']} --from-file=api_key" in page
    assert pod["terminationGracePeriodSeconds"] > BridgeConfig().shutdown_timeout_s


def test_the_unit_starts_a_command_and_leaves_time_to_stop() -> None:
    """It may write only where its state directory is; the page puts files where the unit looks for them."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "benchbridge.service")
    service = unit["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == "benchbridge"
    takes(words)
    assert float(service["TimeoutStopSec"]) > BridgeConfig().shutdown_timeout_s
    page = (ROOT / "docs/tasks/systemd.md").read_text(encoding="utf-8")
    for path in (words[-1], service["LoadCredential"].partition(":")[2], service["WorkingDirectory"], str(Path(program).parents[1])):
        assert path in page, path


def test_the_workflow_runs_commands_that_there_are_and_keeps_the_ledger(tmp_path: Path) -> None:
    """The ledger goes from run to run beside its file, under the name that the bridge gives it; the report is kept even after a failure."""
    document = yaml.safe_load((ROOT / "examples/github_actions/benchmark-sync.yml").read_text(encoding="utf-8"))
    job = document["jobs"]["benchmark"]
    variables = {name: "http://api.example" if name.endswith("_URL") else value for name, value in job["env"].items()}
    settings = configured(variables, tmp_path)
    steps = job["steps"]
    for step in steps:
        for line in step.get("run", "").splitlines():
            if line.strip().startswith("benchbridge "):
                takes(shlex.split(line.partition(">")[0])[1:])
    ledger = BridgeConfig(benchmark_db_path=str(settings["benchmark_db_path"])).ledger_file
    cached = [step for step in steps if "actions/cache" in step.get("uses", "")]
    assert [step["with"]["path"].split() for step in cached] == [[settings["benchmark_db_path"], ledger]] * 2
    upload = next(step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert (upload["if"], upload["with"]["path"].split()) == ("always()", ["sync.json", "report.md", "report.json"])


def test_a_wrong_option_would_be_noticed() -> None:
    """The check above is one."""
    with pytest.raises(click.UsageError):
        takes(["service", "--no-such-option"])
