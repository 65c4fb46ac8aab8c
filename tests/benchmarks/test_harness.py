"""The harness of the benchmarks: what fails or hangs is recorded with what it has, and the rest goes on. No time is asserted."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import ROOT, harness, provenance, rows, sections, timing

pytestmark = pytest.mark.once
ROW = "report = Report(path, 'x', {}, 60); report.measure(lambda: {'microseconds': 1}, case='first')\n"


def run(tmp_path, code, limit=60.0):
    """Runs a section of this code."""
    path = tmp_path / "section.partial.json"
    code = f"import sys, time, pathlib; path = pathlib.Path(sys.argv[1])\nfrom benchmarks.harness import Report\n{code}"
    environment = sections.environment(PYTHONPATH=str(ROOT))
    content = sections.run_section(path, "x", [sys.executable, "-c", code, str(path)], limit, environment)
    assert not list(tmp_path.iterdir())
    return content


@pytest.mark.parametrize(
    ("code", "status", "rows", "said"),
    [
        (ROW, "complete", 1, None),
        (ROW + "raise RuntimeError('no such kernel')", "failed", 1, "no such kernel"),
        ("import os; os.abort()", "failed", 0, ""),
        (ROW + "time.sleep(600)", "timed out", 1, "first"),
    ],
)
def test_sections_that_fail_or_hang_are_recorded_with_what_they_have(tmp_path, code, status, rows, said):
    content = run(tmp_path, code, 8.0)
    assert (content["status"], len(content["rows"])) == (status, rows)
    assert said is None or said in content["output"]


def test_what_a_hanging_section_started_ends_with_it(tmp_path):
    child = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)\ntime.sleep(600)"
    state = pathlib.Path(f"/proc/{run(tmp_path, child, 5.0)['output'].split()[-1]}/stat")
    time.sleep(0.2)
    assert not state.exists() or state.read_text().split()[2] == "Z"


RUN = """
import os, pathlib, sys
from benchmarks import sections
work = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
sections.run_section(pathlib.Path(sys.argv[1]), "x", [sys.executable, "-c", work, sys.argv[1]], 600, os.environ)
"""


def test_a_run_that_is_terminated_ends_its_section_and_leaves_the_partial_file(tmp_path):
    path = tmp_path / "section.partial.json"
    with subprocess.Popen([sys.executable, "-c", RUN, str(path)], cwd=ROOT) as run:
        while not (path.exists() and path.read_text()):
            time.sleep(0.05)
        run.terminate()
    state = pathlib.Path(f"/proc/{path.read_text()}/stat")
    assert run.returncode
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_measurement_that_fails_costs_only_itself_and_keeps_the_end_of_its_error(tmp_path):
    report = harness.Report(tmp_path / "x.json", "x", {}, 60)

    def fails():
        raise ValueError("beginning" + "." * 2 * harness.ERROR + "end")

    report.measure(fails, case="bad")
    report.measure(lambda: {"microseconds": 2}, case="good")
    bad, good = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert bad["error"].startswith("ValueError: ...")
    assert bad["error"].endswith("end")
    assert good["microseconds"] == 2
    late = harness.Report(tmp_path / "y.json", "y", {}, -1)
    assert "skipped" in late.measure(lambda: pytest.fail("it has no time"), case="late")
    assert late.measure(lambda: {"microseconds": 3}, late=False, case="compiled in time")["microseconds"] == 3
    assert "skipped" in report.measure(lambda: pytest.fail("it is too late"), late=True, case="late")


def test_cases_are_names_or_patterns():
    names = ["tiny level 1", "tiny level 1 dilation 8", "384 px level 1"]

    def wanted(*cases):
        return [name for name in names if harness.Options(cases=cases).wants(name)]

    assert wanted() == names
    assert wanted("tiny level 1") == names[:1]
    assert wanted("tiny level 1*") == names[:2]
    assert wanted("* level 1", "*dilation 8") == names


def test_results_are_replaced_by_results_only():
    old, none = {"rows": [{"microseconds": 1}]}, {"rows": [{"error": "no"}, {"skipped": "no"}]}
    new = {"rows": [*none["rows"], {"microseconds": 2}]}
    for keep in (rows.keep, rows.merge):
        assert keep(old, none) is old
        assert keep({}, new) is new
        assert keep({}, none) is none
    assert rows.keep(old, new) is new


def section(date, *found, status="complete", **origin):
    where = {"date": date, "device": "NVIDIA H200", "versions": {"jax": "1"}, "kernels_sha256": "a"} | origin
    passed = {"passed": rows.passed(found)} if any("passed" in row for row in found) else {}
    return {"status": status, "provenance": where, "rows": list(found), **passed}


def test_rows_of_a_rerun_take_the_place_of_the_same_ones_alone():
    old = section(
        "monday",
        {"case": "a", "what": "forward", "microseconds": 1},
        {"case": "a", "what": "both", "microseconds": 2},
        {"case": "b", "what": "both", "microseconds": 3},
        {"case": "c", "what": "both", "skipped": harness.OUT_OF_TIME},
    )
    new = section(
        "tuesday",
        {"case": "a", "what": "both", "microseconds": 4},
        {"case": "b", "what": "both", "skipped": harness.OUT_OF_TIME},
        {"case": "c", "what": "both", "microseconds": 5},
        status="out of time",
    )
    merged = rows.merge(old, new)
    assert [(row["case"], row["what"], row["microseconds"], row.get("date")) for row in merged["rows"]] == [
        ("a", "forward", 1, "monday"),
        ("a", "both", 4, None),
        ("b", "both", 3, "monday"),
        ("c", "both", 5, None),
    ]
    assert (merged["status"], merged["provenance"]["date"]) == ("complete", "tuesday")
    assert rows.merge(old, new | {"status": "timed out"})["status"] == "timed out"
    again = rows.merge(merged, section("wednesday", {"case": "d", "what": "both", "microseconds": 6}))
    assert [row.get("date") for row in again["rows"]] == ["monday", "tuesday", "monday", "tuesday", None]


def test_dates_say_which_rows_are_the_new_ones():
    """Of whole runs, and of rows that a run has from one before."""
    row = {"case": "a", "microseconds": 1}
    old, new = section("1", row | {"microseconds": 1}), section("3", row | {"microseconds": 3})
    assert rows.merge(new, old) == rows.merge(old, new)
    between, later = section("2", row | {"microseconds": 2}), section("3", {"case": "b", "microseconds": 3})
    merged = rows.merge(rows.merge(old, later), between)
    assert [(row["microseconds"], row.get("date")) for row in merged["rows"]] == [(2, "2"), (3, None)]
    assert merged["provenance"]["date"] == "3"


@pytest.mark.parametrize(
    "origin", [{"kernels_sha256": "b"}, {"device": "NVIDIA H100"}, {"versions": {"jax": "2"}}, {"xla_flags": "--x"}]
)
def test_rows_of_other_kernels_devices_versions_and_flags_are_not_mixed(origin):
    old = section("monday", {"case": "a", "microseconds": 1}, {"case": "b", "microseconds": 2})
    new = section("tuesday", {"case": "a", "microseconds": 3}, **origin)
    assert rows.merge(old, new) is new


def test_numerics_are_right_where_all_rows_of_both_runs_are():
    old = section("monday", {"call": "a", "passed": False}, {"call": "b", "passed": True})
    assert not rows.merge(old, section("tuesday", {"call": "b", "passed": True}))["passed"]
    assert rows.merge(old, section("tuesday", {"call": "a", "passed": True}))["passed"]
    assert not rows.merge(old, section("tuesday", {"call": "a", "passed": True}, {"call": "c", "error": "no"}))[
        "passed"
    ]


@pytest.mark.parametrize("text", ["", '{"op": {"rows": [', "[1]"])
def test_damaged_results_are_told_and_start_afresh(tmp_path, capsys, text):
    (tmp_path / "cpu.json").write_text(text)
    assert harness.read(tmp_path / "cpu.json") == {}
    assert "is empty or damaged" in capsys.readouterr().err
    assert harness.read(tmp_path / "gone.json") == {}
    assert capsys.readouterr().err == ""


def test_sections_run_one_after_another_within_the_deadline(tmp_path, capsys):
    """Each in a process that is told its section and options; what lacks a package is skipped."""
    wanted = {
        "floor": sections.Section("nowhere:measure", 60.0),
        "lacks": sections.Section("nowhere:measure", 60.0, ("json", "no_such_package")),
    }
    deadline = time.monotonic() + sections.GRACE + 30.0
    found = dict(sections.run(wanted, harness.Options(small=True), tmp_path / "cpu", deadline))
    assert {name: content["status"] for name, content in found.items()} == {"floor": "failed", "lacks": "skipped"}
    assert "No module named 'benchmarks.nowhere'" in found["floor"]["output"]
    assert found["lacks"]["reason"] == "no no_such_package"
    told = capsys.readouterr().err
    assert "floor: at most 30 s" in told
    assert "skipped: no no_such_package" in told
    ((_, late),) = sections.run({"floor": wanted["floor"]}, harness.Options(), tmp_path / "cpu", time.monotonic())
    assert (late["status"], late["rows"]) == ("out of time", [])


def test_sections_say_that_there_is_no_gpu_or_no_such_case(tmp_path):
    wanted = {"op": sections.Section("gpu.op:measure", 60.0, gpu=True, variables={"JAX_PLATFORMS": "cpu"})}
    ((_, content),) = sections.run(wanted, harness.Options(), tmp_path / "gpu")
    assert content["status"] == "failed"
    assert "This needs a GPU, and found none." in content["output"]
    anywhere = {"op": wanted["op"]._replace(gpu=False)}
    ((_, content),) = sections.run(anywhere, harness.Options(small=True, cases=["no such case"]), tmp_path / "gpu")
    assert (content["status"], content["rows"]) == ("not asked for", [])


def test_jobs_run_side_by_side():
    results = timing.side_by_side({"bad": lambda: 1 / 0, "good": lambda: 2}, threads=2)
    assert results["good"]() == 2
    with pytest.raises(ZeroDivisionError):
        results["bad"]()


def test_a_sample_waits_for_the_last_of_the_runs_in_flight(monkeypatch):
    now, started, waited = [0.0], [], []

    def start():
        now[0] += 0.002
        started.append(len(started))
        return started[-1]

    def wait(run):
        now[0] += 0.001
        waited.append((run, len(started)))

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    times = timing.in_flight(start, wait, calls=2, seconds=0.0)
    assert [run + 1 for run, _ in waited] == [count for _, count in waited] == [1, 2, 5, 8, 11]
    assert times == pytest.approx([(3 * 0.002 + 0.001) / 6] * 3)


def test_runs_are_timed_in_turn_each_after_a_run_of_its_own():
    order = []

    def run(name):
        order.append(name)
        time.sleep(1.1 * timing.SAMPLE)  # so long that a sample is one run

    times = timing.interleaved({name: lambda name=name: run(name) for name in "AB"}, seconds=0.0)
    assert [len(found) for found in times.values()] == [3, 3]
    assert "".join(order) == "AABB" * 4  # at first they warm up
    row = timing.spread([0.001, 0.002, 0.003, 0.004, 0.1])
    assert (row["milliseconds"], row["samples"]) == (3.0, 5)


def test_a_tree_without_its_repository_has_the_commit_that_it_is_told(monkeypatch):
    monkeypatch.setenv(provenance.COMMIT, "abc1234")
    assert provenance.provenance()["commit"] != "abc1234"  # the repository knows better
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    found = provenance.provenance()
    assert (found["commit"], found["uncommitted_changes"]) == ("abc1234", None)
    monkeypatch.delenv(provenance.COMMIT)
    assert provenance.provenance()["commit"] is None


def test_provenance_changes_with_the_kernels(tmp_path, monkeypatch):
    found = provenance.provenance(note="x")
    assert {"date", "device", "cpu", "python", "versions", "commit", "uncommitted_changes", "note"} <= set(found)
    monkeypatch.setattr(provenance, "KERNELS", tmp_path)
    used = ["triton/configs.json", "triton/kernels.py", "fused/layout.py", "bias.py", "plan.py"]
    for name in (*used, "xla/op.py", "reference.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    hashes = [found["kernels_sha256"], provenance.kernels_hash()]
    for name in used:
        (tmp_path / name).write_text("changed")
        hashes.append(provenance.kernels_hash())
    assert len(set(hashes)) == len(hashes)
    for name in ("xla/op.py", "reference.py"):
        (tmp_path / name).write_text("changed")
        assert provenance.kernels_hash() == hashes[-1]


ENTRANT = """
import os


def prepare(what):
    if what == "broken":
        raise ValueError("no such thing")
    if what == "dies":
        os._exit(3)
    return lambda: open(what, "a").write("ran in %d\\n" % os.getpid()), {"prepared in": os.getpid()}
"""


def test_a_worker_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "some_entrant.py").write_text(ENTRANT)
    monkeypatch.syspath_prepend(tmp_path)
    prepare = importlib.import_module("some_entrant").prepare
    with pytest.raises(RuntimeError, match="ValueError: no such thing"):
        harness.Worker(prepare, "broken")
    with pytest.raises(RuntimeError, match="the process of dies ended with exit code 3"):
        harness.Worker(prepare, "dies")
    with harness.Worker(prepare, str(tmp_path / "runs")) as worker:
        process = worker.row["prepared in"]
        worker.run()
        worker.run()
        assert (tmp_path / "runs").read_text() == f"ran in {process}\n" * 2
        assert process != os.getpid()
        os.kill(process, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with exit code -9"):
            worker.run()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
