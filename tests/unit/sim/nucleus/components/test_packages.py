"""Recipes and artifacts: found, copied, unpacked, and refused."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
import yaml

from lisiere.errors import ConfigError, Permanent, Rejected
from lisiere_sim.nucleus.components import packages
from lisiere_sim.nucleus.components.packages import Packages, unzip
from lisiere_sim.nucleus.components.processes import User, own_user
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from lisiere_sim.nucleus.layout import Layout
from support.nuclei import A, B, write_recipe


def made(folder: Path, flavour: Flavour = CLASSIC) -> Packages:
    layout = Layout(folder / "root")
    layout.make()
    return Packages(layout, flavour)


def zipped(file: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file


def test_artifacts_are_copied_and_unpacked_where_the_flavour_does_so(tmp_path: Path) -> None:
    artifacts = [
        {"Uri": "s3://BUCKET/x/a.zip", "Unarchive": "ZIP", "Permission": {"Read": "ALL"}},
        {"URI": "file:/b.sh", "Permission": {"Read": "OWNER", "Execute": "OWNER"}},
    ]
    write_recipe(tmp_path / "r", artifacts=artifacts)
    zipped(tmp_path / "a" / A / "1.0.0" / "a.zip", ("lib/x.py", b"x = 1"))
    (tmp_path / "a" / A / "1.0.0" / "b.sh").write_text("echo b")
    for flavour in (CLASSIC, LITE):
        one = made(tmp_path / flavour.name, flavour)
        (recipe,) = one.add(tmp_path / "r", tmp_path / "a")
        one.install(recipe, own_user())
        root = tmp_path / flavour.name / "root" / "packages"
        assert (root / "recipes" / f"{A}-1.0.0.yaml").exists()
        copies = root / "artifacts" / A / "1.0.0"
        assert {file.name for file in copies.iterdir()} == {"a.zip", "b.sh"}
        assert stat.S_IMODE((copies / "b.sh").stat().st_mode) == 0o700
        unpacked = root / "artifacts-unarchived" / A / "1.0.0" / "a" / "lib" / "x.py"
        assert unpacked.exists() == flavour.unpacks_local_artifacts
        if unpacked.exists():
            assert stat.S_IMODE(unpacked.stat().st_mode) == 0o644


def test_the_digest_changes_with_the_artifacts_and_copies_follow(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r", artifacts=[{"Uri": "s3://B/x.txt"}])
    source = tmp_path / "a" / A / "1.0.0" / "x.txt"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    one = made(tmp_path)
    (recipe,) = one.add(tmp_path / "r", tmp_path / "a")
    stale = tmp_path / "root" / "packages" / "artifacts" / A / "1.0.0.new" / "stale.txt"  # of an attempt that failed
    stale.parent.mkdir(parents=True)
    stale.touch()
    first = one.install(recipe, own_user())
    assert one.install(recipe, own_user()) == first
    source.write_text("two")
    assert one.install(recipe, own_user()) != first
    copy = tmp_path / "root" / "packages" / "artifacts" / A / "1.0.0" / "x.txt"
    assert [file.name for file in copy.parent.iterdir()] == ["x.txt"]
    assert copy.read_text() == "two"
    # A later nucleus in this root knows the copies alone.
    later = made(tmp_path)
    later.add_kept()
    source.unlink()
    later.install(later.pool[A]["1.0.0"], own_user())
    assert copy.read_text() == "two"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    one = made(tmp_path)
    write_recipe(tmp_path / "r", artifacts=[{"Uri": "s3://B/x.txt"}])
    (recipe,) = one.add(tmp_path / "r", tmp_path / "a")
    with pytest.raises(ConfigError, match=f"{A}/1.0.0/x.txt of {A} 1.0.0 is missing"):
        one.install(recipe, own_user())
    with pytest.raises(ConfigError, match="There is no recipe"):
        one.add(tmp_path / "root", None)
    with pytest.raises(ConfigError, match="There is no "):
        one.add(tmp_path / "absent", None)


def test_documents_beside_recipes_are_passed_over_but_misspelt_recipes_are_not(tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "r")
    (tmp_path / "r" / "gdk-config.json").write_text('{"component": {}}')
    assert [one.name for one in made(tmp_path).add(tmp_path / "r", None)] == [A]
    (tmp_path / "r" / "other.yaml").write_text(file.read_text().replace("ComponentName", "componentname"))
    with pytest.raises(ConfigError, match="did you mean `ComponentName`"):
        made(tmp_path).add(tmp_path / "r", None)
    (tmp_path / "r" / "other.yaml").write_text(file.read_text())
    with pytest.raises(ConfigError, match=f"are both {A} 1.0.0"):
        made(tmp_path).add(tmp_path / "r", None)


def _link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (("../outside", b"x"), "'../outside', which leads out"),
        (("a/../../outside", b"x"), "leads out"),
        (("/outside", b"x"), "leads out"),
        (("a\\..\\outside", b"x"), "leads out"),
        ((_link("link"), b"/etc/passwd"), "'link', which is a link or device"),
    ],
)
def test_archives_that_reach_out_are_refused_whole(
    tmp_path: Path, member: tuple[str | zipfile.ZipInfo, bytes], says: str
) -> None:
    archive = zipped(tmp_path / "deep" / "a.zip", ("good.txt", b"x"), member)
    with pytest.raises(Rejected, match=says):
        unzip(archive, tmp_path / "deep" / "to" / "a", 0o644)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["a.zip"]


def test_bombs_are_refused_before_they_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "a.zip", ("zeros", bytes(1 << 20)), ("more", b"x"))
    monkeypatch.setattr(packages, "_RATIO_FROM", 1 << 19)
    with pytest.raises(Rejected, match="200 times as large when unpacked, by 'zeros'"):
        unzip(archive, tmp_path / "to", 0o644)
    monkeypatch.setattr(packages, "_BYTES_MAX", 1000)
    with pytest.raises(Rejected, match="larger than 1000 bytes when unpacked, by 'zeros'"):
        unzip(archive, tmp_path / "to", 0o644)
    monkeypatch.setattr(packages, "_MEMBERS_MAX", 1)
    with pytest.raises(Rejected, match="holds 2 members"):
        unzip(archive, tmp_path / "to", 0o644)
    assert not (tmp_path / "to").exists()


def test_what_is_no_zip_or_damaged_leaves_nothing(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("x", os.urandom(5000)))
    data = bytearray(archive.read_bytes())
    data[2000] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(Rejected, match=r"a\.zip cannot be unpacked"):
        unzip(archive, tmp_path / "to", 0o644)
    zipped(archive, ("x", os.urandom(3000) + bytes(5000)))
    data = bytearray(archive.read_bytes())
    data[40:60] = b"\xff" * 20  # what zlib itself cannot read
    archive.write_bytes(data)
    with pytest.raises(Rejected, match=r"a\.zip cannot be unpacked"):
        unzip(archive, tmp_path / "to", 0o644)
    zipped(archive, ("é", b""))
    archive.write_bytes(archive.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(Rejected, match=r"a\.zip cannot be unpacked"):
        unzip(archive, tmp_path / "to", 0o644)
    archive.write_bytes(b"no zip")
    with pytest.raises(Rejected, match=r"a\.zip cannot be unpacked"):
        unzip(archive, tmp_path / "to", 0o644)
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(archive, ("x", b"1"), ("x", b"2"))
    with pytest.raises(Rejected, match="twice"):
        unzip(archive, tmp_path / "to", 0o644)
    zipped(archive, ("x", b"1"), ("x/y", b"2"))
    with pytest.raises(Rejected, match="as file and folder"):
        unzip(archive, tmp_path / "to", 0o644)
    assert not (tmp_path / "to").exists()


def test_two_components_do_not_share_files(tmp_path: Path) -> None:
    for name in (A, B):
        write_recipe(tmp_path / "r", name, artifacts=[{"Uri": "s3://B/x.txt"}])
        (tmp_path / "a" / name / "1.0.0").mkdir(parents=True)
        (tmp_path / "a" / name / "1.0.0" / "x.txt").write_text(name)
    one = made(tmp_path)
    for recipe in one.add(tmp_path / "r", tmp_path / "a"):
        one.install(recipe, own_user())
        copy = tmp_path / "root" / "packages" / "artifacts" / recipe.name / "1.0.0" / "x.txt"
        assert copy.read_text() == recipe.name


def test_a_link_that_a_component_puts_in_the_place_of_its_artifact_is_not_followed(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r", artifacts=[{"Uri": "s3://B/x.txt"}])
    source = tmp_path / "a" / A / "1.0.0" / "x.txt"
    source.parent.mkdir(parents=True)
    source.write_text("mine")
    one = made(tmp_path)
    (recipe,) = one.add(tmp_path / "r", tmp_path / "a")
    one.install(recipe, own_user())
    secret = tmp_path / "secret"
    secret.write_text("of the nucleus' user alone")
    copy = tmp_path / "root" / "packages" / "artifacts" / A / "1.0.0" / "x.txt"
    copy.unlink()
    copy.symlink_to(secret)
    later = made(tmp_path, LITE)  # another nucleus makes its own of the copies
    later.add_kept()
    with pytest.raises(Permanent, match="cannot be copied"):
        later.install(later.pool[A]["1.0.0"], own_user())
    assert copy.is_symlink()
    source.unlink()
    source.symlink_to(secret)  # the user may do so
    (recipe,) = one.add(tmp_path / "r", tmp_path / "a")
    one.install(recipe, own_user())
    assert copy.read_text() == secret.read_text()
    assert not copy.is_symlink()


def test_a_recipe_that_changes_from_json_to_yaml_is_kept_once(tmp_path: Path) -> None:
    one = made(tmp_path)
    yaml_file = write_recipe(tmp_path / "r", lifecycle={"run": "echo new"})
    json_file = tmp_path / "j" / "recipe.json"
    json_file.parent.mkdir()
    json_file.write_text(json.dumps(yaml.safe_load(yaml_file.read_text().replace("new", "old"))))
    for file in (json_file, yaml_file):
        (recipe,) = one.add(file, None)
        one.install(recipe, own_user())
    later = made(tmp_path)
    later.add_kept()
    assert later.pool[A]["1.0.0"].steps.scripts["run"].script == "echo new"


def test_a_pipe_among_the_recipes_is_not_waited_for(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r")
    os.mkfifo(tmp_path / "r" / "a.yaml")
    assert [recipe.name for recipe in made(tmp_path).add(tmp_path / "r", None)] == [A]


def test_a_folder_is_handed_over_after_all_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path / "r", artifacts=[{"Uri": "s3://B/x.zip", "Unarchive": "ZIP"}])
    zipped(tmp_path / "a" / A / "1.0.0" / "x.zip", ("one/two/y", b""), ("one/z", b""))
    handed: list[Path] = []

    def chown(place: Path, _uid: int, _gid: int, *, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        handed.append(place)

    monkeypatch.setattr(os, "chown", chown)
    one = made(tmp_path)
    (recipe,) = one.add(tmp_path / "r", tmp_path / "a")
    one.install(recipe, User("other", os.geteuid() + 1, 0, "/"))
    assert {place.name for place in handed} == {"1.0.0", "x.zip", "x", "one", "two", "y", "z"}
    for number, place in enumerate(handed):
        assert not any(place in later.parents for later in handed[number:])
