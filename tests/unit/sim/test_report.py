from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lisiere.spool import Counts
from lisiere_sim.progress import LiveProgress, Progress, State, choose_progress, describe
from lisiere_sim.report import (
    Evidence,
    OutageReport,
    Report,
    RestartReport,
    make_report,
    print_report,
    sentences,
    write_json,
)
from lisiere_sim.subscriber import Seen

OUTAGE = OutageReport(kind="cut", start_s=14.0, length_s=10.04, backlog=143, drain_s=1.82)


def evidence(**changes: Any) -> Evidence:
    given: dict[str, Any] = {
        "counts": {"dock": Counts(400, 400, 0), "pump": Counts(412, 412, 0)},
        "waiting": {},
        "seen": {
            "dock": Seen(delivered=400, duplicates=3, backends={"dlr": 400}, latencies=[1.0] * 98 + [5.0, 9.0]),
            "pump": Seen(delivered=412, backends={"dlr": 400, "onnx": 12}, latencies=[2.0]),
        },
        "peaks": {"dock": 100},
        "holes": [],
        **changes,
    }
    return Evidence(**given)


def report_of(outages: Sequence[OutageReport] = (), **changes: Any) -> Report:
    return make_report({"sim": evidence(**changes)}, list(outages))


def text(report: Any) -> str:
    return " ".join(sentences(report))


def test_the_json_has_the_keys_that_are_promised() -> None:
    document = json.loads(write_json(report_of(outages=[OUTAGE])))
    assert {"devices", "outages", "lost"} <= set(document)
    pipelines = document["devices"]["sim"]["pipelines"]
    dock = pipelines["dock"]
    promised = {"accepted", "delivered", "duplicates", "lost", "backlog_peak", "backend", "latency_ms"}
    assert promised <= set(dock)
    assert dock["latency_ms"] == {"p50": 1.0, "p95": 1.0, "p99": 5.04}
    assert (dock["accepted"], dock["delivered"], dock["duplicates"], dock["lost"]) == (400, 400, 3, 0)
    assert (dock["backlog_peak"], dock["backend"]) == (100, "dlr")
    assert pipelines["pump"]["backend"] == "dlr+onnx"
    assert document["outages"][0]["start_s"] == 14.0
    assert document["outages"][0]["drain_s"] == 1.82
    assert document["lost"] == 0


def test_a_whole_run_says_so_in_one_sentence() -> None:
    report = report_of(outages=[OUTAGE])
    assert report.whole
    assert text(report) == (
        "812 results accepted, 812 delivered, 0 lost; the network was away for 10.0 s and the backlog of 143 was "
        "delivered 1.8 s after it came back."
    )


def test_what_is_accepted_and_not_delivered_is_lost() -> None:
    report = report_of(counts={"dock": Counts(403, 403, 0), "pump": Counts(412, 412, 0)})
    assert (report.pipelines["sim/dock"].lost, report.lost, report.whole) == (3, 3, False)
    assert "3 lost" in text(report)


def test_what_a_gap_record_names_is_evicted_and_not_lost() -> None:
    seen = {"dock": Seen(delivered=390, evicted=10, backends={"dlr": 1})}
    report = report_of(counts={"dock": Counts(400, 390, 10)}, seen=seen)
    assert (report.lost, report.pipelines["sim/dock"].evicted, report.whole) == (0, 10, True)
    assert "10 evicted by the spool's limit" in text(report)


def test_a_result_that_was_delivered_and_evicted_is_no_negative_loss() -> None:
    seen = {"dock": Seen(delivered=395, evicted=10)}
    assert report_of(counts={"dock": Counts(400, 390, 10)}, seen=seen).lost == 0


def test_a_hole_is_a_loss_even_when_the_counts_agree() -> None:
    report = report_of(holes=[7, 8])
    assert (report.lost, report.devices["sim"].holes, report.whole) == (2, 2, False)
    assert "2 numbers of the sequence" in text(report)


def test_what_still_waits_counts_as_lost_and_is_said_to_wait() -> None:
    report = report_of(counts={"dock": Counts(405, 400, 0), "pump": Counts(412, 412, 0)}, waiting={"dock": 5})
    assert (report.lost, report.pipelines["sim/dock"].waiting) == (5, 5)
    assert "5 still wait in a spool" in text(report)


def test_devices_are_judged_each_by_itself_and_summed_up() -> None:
    whole, holed = evidence(), evidence(holes=[7], restarts=[RestartReport(start_s=3.0, length_s=1.5)])
    report = make_report({"gate": whole, "shed": holed}, [OUTAGE], "embedded", 12.34)
    assert [device.lost for device in report.devices.values()] == [0, 1]
    assert (report.lost, report.whole, report.duration_s) == (1, False, 12.3)
    assert text(report).startswith("1624 results accepted, 1624 delivered, 1 lost; ")
    assert "shed was killed" in text(report)


def test_a_silent_pipeline_is_named_and_has_no_latency() -> None:
    report = report_of(seen={"dock": Seen(delivered=400), "co2": Seen()})
    assert (report.silent, report.whole, report.lost) == (["sim/co2"], False, 0)
    assert report.pipelines["sim/co2"].latency_ms.p50 is None
    assert "Nothing came from sim/co2." in text(report)


def test_restarts_stalls_and_undelivered_backlogs_are_told() -> None:
    stall = OutageReport(kind="stall", start_s=1.0, length_s=5.0, backlog=9, drain_s=None)
    report = report_of(outages=[stall], restarts=[RestartReport(start_s=3.0, length_s=1.5)], unreadable=2)
    said = text(report)
    assert "the network stalled for 5.0 s and its backlog of 9 was not delivered whole" in said
    assert "sim was killed at 3.0 s and ran again 1.5 s later" in said
    assert "2 messages were not what" in said


def test_the_printed_report_has_a_row_a_pipeline_and_the_sentence_unbroken() -> None:
    output = io.StringIO()
    print_report(report_of(outages=[OUTAGE]), Console(file=output, width=80))
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert ["sim/dock", "dlr", "400", "400", "3", "0", "100", "1.00", "1.00", "5.04"] in lines
    assert ["sim/pump", "dlr+onnx", "412", "412", "0", "0", "0", "2.00", "2.00", "2.00"] in lines
    assert lines[-1][:3] == ["812", "results", "accepted,"]
    assert lines[-1][-2:] == ["came", "back."]


def test_answers_in_a_few_words() -> None:
    assert describe("classification", {"label": "7", "score": 0.981}) == "7 (0.98)"
    objects = [{"label": label} for label in ("cat", "dog", "cat")]
    assert describe("detection", {"objects": objects}) == "2 cat, 1 dog"
    assert describe("detection", {"objects": []}) == "nothing"
    assert describe("anomaly", {"state": "anomalous", "score": 3.14159, "threshold": 1.2}) == (
        "anomalous (3.14, threshold 1.2)"
    )
    assert describe("anomaly", {"state": "no_data", "score": None, "threshold": 1.2}) == "no_data"
    quantiles = {"0.9": [2.0, 422.6], "0.1": [0.0, 420.1], "0.5": [1.0, 421.3]}
    assert describe("forecasting", {"quantiles": quantiles}) == "in 2 steps 421.3 (420.1 … 422.6)"
    assert describe("", {}) == ""


def test_elsewhere_than_on_a_terminal_progress_is_one_line_an_event() -> None:
    output = io.StringIO()
    with choose_progress(Console(file=output, width=20)) as progress:
        assert type(progress) is Progress
        progress.event("broker embedded at 127.0.0.1:1883 [dim]")
        progress.update(State(1, 2, "up"))
        progress.event("link cut for 3 s", 4.0)
    assert output.getvalue().splitlines() == [
        "broker embedded at 127.0.0.1:1883 [dim]",
        "   4.0 s  link cut for 3 s",
    ]


def test_on_a_terminal_the_display_shows_link_and_pipelines() -> None:
    from lisiere_sim.progress import Line

    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True, color_system=None)
    with choose_progress(console) as progress:
        assert isinstance(progress, LiveProgress)
        progress.event("link cut for 3 s", 4.0)
        progress.update(State(5, 10, "cut", ("gate",), {"dock": Line(12, 10, 2, "7 (0.98)")}))
    printed = output.getvalue()
    assert "link cut for 3 s" in printed
    assert "gate away" in printed
    assert "5 of 10 s" in printed
    assert "7 (0.98)" in printed


def test_what_results_say_of_their_input_is_counted_and_said() -> None:
    seen = {"dock": Seen(delivered=400, backends={"dlr": 400}), "pump": Seen(delivered=412, backends={"dlr": 412})}
    seen["pump"].faults.update({"gap": 3, "stuck:vibration": 1})
    report = report_of(seen=seen)
    assert report.pipelines["sim/pump"].input_faults == {"gap": 3, "stuck:vibration": 1}
    assert "sim/pump: 3 results of an input with gap, 1 result of an input with stuck:vibration." in sentences(report)
    assert "sim/dock:" not in text(report)


def test_how_soon_a_frozen_camera_was_named_is_measured_by_the_stamps_of_its_results() -> None:
    seen = {name: Seen(delivered=400, backends={"dlr": 400}) for name in ("dock", "pump")}
    seen["dock"].first, seen["dock"].named["frozen"] = 1000.0, 1009.3
    report = report_of(seen=seen, freezes={"dock": 8.0, "pump": 8.0})
    assert report.pipelines["sim/dock"].frozen_after_s == 1.3
    assert report.pipelines["sim/pump"].frozen_after_s is None
    assert "sim/dock said that its camera was frozen 1.3 s after it froze." in sentences(report)
