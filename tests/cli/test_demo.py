"""``mesh demo`` as a whole: on the dev agent, on a real Consul, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent
from tests.support.consul import RealConsul, find_consul
from tests.support.servers import Process, clean_environment

from .conftest import Run

DEMO = (sys.executable, "-m", "mesh_middleware.cli", "demo")


def demo(folder: Path, *more: str, **environment: str) -> Process:
    """The demo as a process, in a shell that names a cluster which must not be touched."""
    named = {"CONSUL_HTTP_ADDR": "http://127.0.0.1:1", "CONSUL_HTTP_TOKEN": "not-for-the-demo"}
    temporary = folder / "tmp"
    temporary.mkdir()
    variables = clean_environment(TMPDIR=str(temporary), COLUMNS="160", **(named | environment))
    return Process([*DEMO, *more], folder, variables)


def evidence(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evidence.json").read_text())
    return found


def expect_nothing_left(folder: Path, processes: list[dict[str, Any]]) -> None:
    """No process of the demo runs, no directory of it is there."""
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process["pid"], 0)
    assert list((folder / "tmp").glob("mesh-demo-*")) == []


def expect_rotation(found: dict[str, Any]) -> None:
    """Each service showed two certificates, of two issuers."""
    for name in ("order", "invoice", "tax"):
        seen = [each for each in found["certificates"] if each["service"] == name]
        assert len({each["serial_number"] for each in seen}) == 2
        assert len({each["issuer"] for each in seen}) == 2


@pytest.mark.process
@pytest.mark.timeout(150)
def test_on_the_dev_agent_all_of_it_holds(tmp_path: Path) -> None:
    """Ten steps held, exit code 0, and the evidence says how."""
    with demo(tmp_path, "--json", "evidence.json") as process:
        assert process.wait_end(140) == 0
    found = evidence(tmp_path)
    assert [step["outcome"] for step in found["steps"]] == ["held"] * 10
    assert found["held"] is True
    assert "all of it held" in process.output
    expect_rotation(found)
    expect_nothing_left(tmp_path, found["processes"])

    by_name = {process["name"]: process for process in found["processes"]}
    assert set(by_name) == {"agent", "order", "invoice", "tax", "tax-backup"}
    assert len({process["port"] for process in found["processes"]}) == 6

    figures = {step["number"]: step["figures"] for step in found["steps"]}
    assert figures[3]["ms_to_first_refusal"] < 1000
    assert figures[6]["calls"] > 20 and figures[7]["calls_without_agent"] > 20
    busy = [call for call in found["calls"] if call["step"] in (6, 7)]
    assert len(busy) == figures[6]["calls"] + figures[7]["calls"]
    assert {call["status"] for call in busy} == {200}
    assert 5 <= figures[9]["v2_of_a_fifth"] <= 40
    assert figures[10]["failed"] == 0 and figures[10]["calls"] > 2
    strangers = [call for call in found["calls"] if call["step"] == 8 and call["caller"] != "shop"]
    assert [call["status"] for call in strangers] == [None, None]
    assert all(datetime.fromisoformat(call["at"]).tzinfo for call in found["calls"])
    assert "PRIVATE KEY" not in json.dumps(found) + process.output


@pytest.mark.process
@pytest.mark.timeout(240)
def test_on_a_real_consul_all_that_it_offers_holds(tmp_path: Path) -> None:
    """A private server is started; what its version lacks is said, and does not count."""
    with demo(tmp_path, "--consul", find_consul(), "--json", "evidence.json") as process:
        assert process.wait_end(230) == 0
    found = evidence(tmp_path)
    outcomes = [step["outcome"] for step in found["steps"]]
    assert outcomes[:4] + outcomes[5:] == ["held"] * 9
    assert outcomes[4] in ("held", "not offered by this Consul")
    assert found["agent"]["title"].startswith("a private Consul ")
    expect_rotation(found)
    expect_nothing_left(tmp_path, found["processes"])


@pytest.mark.process
@pytest.mark.timeout(150)
def test_on_an_existing_agent_it_tidies_up_and_leaves_the_agent_alone(
    tmp_path: Path, old_consul: RealConsul, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--use-existing leaves out rotation and stopping, by name, and removes what it wrote."""
    words = ("--use-existing", "--json", "evidence.json")
    with demo(tmp_path, *words, CONSUL_HTTP_ADDR=old_consul.url) as process:
        assert process.wait_end(140) == 0
    steps = evidence(tmp_path)["steps"]
    assert [steps[5]["outcome"], steps[6]["outcome"]] == ["left out", "left out"]
    assert "CA rotation" in steps[5]["says"] and "stopping the agent" in steps[6]["says"]
    expect_nothing_left(tmp_path, evidence(tmp_path)["processes"])
    monkeypatch.setenv("CONSUL_HTTP_ADDR", old_consul.url)
    assert run("intention", "list")[1] == "no intentions\n"
    assert json.loads(run("status", "--json")[1])["services"] == []


def test_an_existing_agent_that_knows_such_names_is_not_touched(
    run: Run, mesh_agent: DevAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 and the names that are taken, before anything is started or written."""
    mesh_agent.deny("web", "tax")
    monkeypatch.setenv("MESH_AGENT", mesh_agent.url)
    code, out, err = run("demo", "--use-existing")
    assert code == 2
    assert "web -> tax" in err and "hypercorn" not in out


def test_an_existing_agent_that_denies_by_default_is_not_touched(
    run: Run, mesh_agents: Callable[..., DevAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story begins with a default allow, and says so."""
    agent = mesh_agents(default_policy="deny")
    monkeypatch.setenv("MESH_AGENT", agent.url)
    code, out, err = run("demo", "--use-existing")
    assert code == 2
    assert "denies by default" in err and "hypercorn" not in out


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "was called by"),
        (signal.SIGTERM, "the agent: "),
        (signal.SIGHUP, "the agent: "),
    ],
    ids=["Ctrl-C in the middle", "SIGTERM at the start", "the terminal is closed"],
)
def test_interrupted_it_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, when: str
) -> None:
    """Asked twice, even: processes and files are gone, and the evidence claims nothing."""
    with demo(tmp_path, "--json", "evidence.json") as process:
        process.wait_output(when)
        process.signal(number)
        process.signal(number)
        assert process.wait_end() == 130
    assert "everything the demo started has been stopped" in process.output
    assert evidence(tmp_path)["held"] is False
    expect_nothing_left(tmp_path, evidence(tmp_path)["processes"])


@pytest.mark.process
def test_a_service_that_cannot_start_fails_the_demo_and_shows_why(tmp_path: Path) -> None:
    """Exit code 1, the failed step, its log, and the steps that were not reached."""
    (tmp_path / "flask.py").write_text("raise SystemExit('this flask is broken')\n")
    with demo(tmp_path, "--json", "evidence.json", PYTHONPATH=str(tmp_path)) as process:
        assert process.wait_end() == 1
    outcomes = [step["outcome"] for step in evidence(tmp_path)["steps"]]
    assert outcomes == ["failed"] + ["not reached"] * 9
    assert "this flask is broken" in process.output
    assert "not all of it held" in process.output
    expect_nothing_left(tmp_path, evidence(tmp_path)["processes"])


@pytest.mark.process
def test_evidence_may_go_to_standard_output(run: Run) -> None:
    """With --json - the output is JSON alone, also when there was nothing to see."""
    code, out, err = run("demo", "--consul", "/nowhere/consul", "--json", "-")
    assert (code, json.loads(out)["held"]) == (2, False)
    assert "/nowhere/consul" in err
