"""Export and import: what waits goes from one card to another, and every id stays what it was where it can."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path

import msgspec
import pytest

from lisiere.cli import main
from lisiere.clock import ManualClock
from lisiere.config import SpoolConfig
from lisiere.errors import Permanent, Rejected
from lisiere.spool import Counts, Spool, SpoolReader, database_file
from lisiere.spool.reader import KINDS
from lisiere.spool.transfer import export, import_lines
from lisiere.spool.verify import verify

CLOCK = ManualClock()


def opened(folder: Path) -> Spool:
    return Spool(SpoolConfig(path=str(folder), linger_ms=0), CLOCK)


@pytest.fixture
def rescued(tmp_path: Path) -> Path:
    """A spool of ten results of which two were delivered and one could not be, whose device is gone."""
    spool = opened(tmp_path / "rescued")
    for number in range(10):
        ttl_s = 60 if number == 9 else None
        spool.append("dock", b'{"n":%d,"text":"\xc3\xa9"}' % number, importance="alarm", ttl_s=ttl_s)
    assert spool.flush(10)
    spool.acknowledge([1, 2], {"dock": 3})
    spool.set_aside([3], "refused")
    assert spool.close()
    return tmp_path / "rescued"


def exported(folder: Path) -> bytes:
    out = io.BytesIO()
    export(folder, out)
    return out.getvalue()


def everything(folder: Path) -> list[object]:
    reader = SpoolReader(folder)
    found = [reader.epoch, reader.highest, reader.counts(), list(reader.every())]
    reader.close()
    return found


def test_a_new_spool_becomes_the_one_that_was_exported(rescued: Path, tmp_path: Path) -> None:
    done = import_lines(io.BytesIO(exported(rescued)), tmp_path / "new", CLOCK)
    assert (done.rows, done.unread, done.renamed) == (8, 0, False)
    assert everything(tmp_path / "new") == everything(rescued)
    assert all(check.holds for check in verify(tmp_path / "new"))
    spool = opened(tmp_path / "new")
    spool.append("dock", b'{"n":10}')
    assert spool.flush(10)
    assert spool.committed == 12
    spool.close()


def test_a_spool_with_rows_of_its_own_gives_new_numbers_and_says_the_old_ones(rescued: Path, tmp_path: Path) -> None:
    other = opened(tmp_path / "other")
    other.append("yard", b'{"n":0}')
    assert other.close()
    text = exported(rescued)
    assert import_lines(io.BytesIO(text), tmp_path / "other", CLOCK).renamed
    assert import_lines(io.BytesIO(text), tmp_path / "other", CLOCK).rows == 0, "taken twice"
    reader, old = SpoolReader(tmp_path / "other"), SpoolReader(rescued)
    rows = reader.after(0, 100)
    assert [row.seq for row in rows] == list(range(1, 10))
    assert [msgspec.json.decode(row.body)["formerly"] for row in rows[1:]] == [
        f"{old.epoch}:{row.seq}" for row in old.after(0, 100)
    ]
    assert reader.counts() == {"dock": Counts(7), "yard": Counts(1)}
    reader.close()
    old.close()
    assert all(check.holds for check in verify(tmp_path / "other"))


def test_the_very_spool_is_refused(rescued: Path) -> None:
    with pytest.raises(Permanent, match="very one"):
        import_lines(io.BytesIO(exported(rescued)), rescued, CLOCK)


def test_a_spool_in_use_is_refused(rescued: Path, tmp_path: Path) -> None:
    spool = opened(tmp_path / "busy")
    with pytest.raises(Permanent, match="in use"):
        import_lines(io.BytesIO(exported(rescued)), tmp_path / "busy", CLOCK)
    spool.close()


def test_an_export_that_is_cut_short_is_refused_and_nothing_is_taken(rescued: Path, tmp_path: Path) -> None:
    lines = exported(rescued).splitlines(keepends=True)
    for cut in range(len(lines)):
        with pytest.raises(Rejected):
            import_lines(lines[:cut], tmp_path / "new", CLOCK)
    reader_of = tmp_path / "new"
    if database_file(reader_of).exists():
        reader = SpoolReader(reader_of)
        assert (reader.highest, reader.counts(), reader.after(0, 10)) == (0, {}, [])
        reader.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"n":4', b'"n":'),
        (b'"pipeline":"dock"', b'"pipeline":"a/b"'),
        (b'"pipeline":"dock"', b'"pipeline":""'),
        (b'"seq":5', b'"seq":1'),
        (b'"seq":11', b'"seq":99'),
        (b'"seq":5', b'"seq":-5'),
        (b'"importance":"alarm"', b'"importance":"gold"'),
        (b'"body":{"n":4,"text":"\xc3\xa9"}', b'"body":[1]'),
        (b'"body":{"n":4,"text":"\xc3\xa9"}', b'"body":{}'),
        (b'"schema":"lisiere.spool/1"', b'"schema":"other/1"'),
        (b'"accepted_ts":17', b'"accepted_ts":1e99,"x":17'),
        (b'"rows":8', b'"rows":7'),
    ],
)
def test_a_line_that_export_does_not_write_is_refused(old: bytes, new: bytes, rescued: Path, tmp_path: Path) -> None:
    text = exported(rescued)
    assert old in text
    with pytest.raises(Rejected):
        import_lines(io.BytesIO(text.replace(old, new)), tmp_path / "new", CLOCK)


def test_by_the_command_line(rescued: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    assert main(["spool", "verify", str(rescued)]) == 0
    assert "is whole" in capsys.readouterr().out
    assert main(["spool", "export", str(rescued), str(file)]) == 0
    assert "8 rows" in capsys.readouterr().err
    assert main(["spool", "export", str(rescued), str(file)]) == 2, "it would have been overwritten"
    assert main(["spool", "import", str(tmp_path / "new"), str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 8
    assert main(["spool", "import", str(tmp_path / "new"), str(file)]) == 1
    assert main(["spool", "import", str(tmp_path / "new"), str(tmp_path / "none")]) == 2
    assert main(["spool", "verify", str(tmp_path / "none")]) == 1
    assert main(["spool", "export", str(tmp_path / "none"), "-"]) == 1


def test_a_damaged_spool_is_told_and_exported_as_far_as_it_reads(
    rescued: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = database_file(rescued)
    content = file.read_bytes()
    assert b'{"n":4' in content
    file.write_bytes(content.replace(b'{"n":4', b'{"n":5'))
    assert main(["spool", "verify", str(rescued), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in told["checks"] if not check["holds"]] == ["rows"]
    assert main(["spool", "export", str(rescued), str(tmp_path / "rows")]) == 3
    assert "1 numbers could not be read" in capsys.readouterr().err
    assert main(["spool", "import", str(tmp_path / "new"), str(tmp_path / "rows")]) == 0
    reader = SpoolReader(tmp_path / "new")
    assert reader.counts()["dock"] == Counts(10, 2, set_aside=1, damaged=1, sent=3)
    reader.close()
    file.write_bytes(b"nothing")
    assert main(["spool", "verify", str(rescued)]) == 3
    assert main(["spool", "export", str(rescued), str(tmp_path / "nothing")]) == 3
    assert "0 rows" in capsys.readouterr().err


def test_events_and_scores_stay_what_they_are(tmp_path: Path) -> None:
    spool = opened(tmp_path / "mixed")
    for kind in KINDS:
        spool.append("dock", b'{"n":1}', kind=kind)
    assert spool.close()
    import_lines(io.BytesIO(exported(tmp_path / "mixed")), tmp_path / "new", CLOCK)
    for folder in ("mixed", "new"):
        reader = SpoolReader(tmp_path / folder)
        assert [row.kind for row in reader.after(0, 10)] == list(KINDS)
        reader.close()


def test_a_kind_that_changes_on_the_disk_is_seen(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append("dock", b'{"n":1}', kind="event")
    assert spool.close()
    db = sqlite3.connect(database_file(tmp_path))
    db.execute("UPDATE queue SET kind = 'score'")
    db.commit()
    db.close()
    damaged: list[int] = []
    reader = SpoolReader(tmp_path, damaged.extend)
    assert reader.after(0, 10) == []
    assert damaged == [1]
    reader.close()
