"""Recipes and artifacts: found where the user has them, copied below the root, archives unpacked with care."""

from __future__ import annotations

import hashlib
import logging
import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from lisiere.errors import ConfigError, Permanent, Rejected
from lisiere_sim.nucleus.components.processes import User
from lisiere_sim.nucleus.components.recipe import SUFFIXES, Artifact, Recipe, read_recipe
from lisiere_sim.nucleus.flavour import Flavour
from lisiere_sim.nucleus.layout import Layout

_log = logging.getLogger("lisiere_sim.nucleus")

# Bounds of an archive: bytes and members when unpacked; and from how many bytes on which ratio is a bomb's.
_BYTES_MAX = 4 << 30
_MEMBERS_MAX = 100_000
_RATIO_FROM = 64 << 20
_RATIO_MAX = 200
_CHUNK = 1 << 20
_READ = {"NONE": 0o200, "OWNER": 0o600, "ALL": 0o644}
_EXECUTE = {"NONE": 0, "OWNER": 0o100, "ALL": 0o111}


class Packages:
    """The recipes that can be deployed, and where the artifacts of each are.

    Attributes:
        pool: name -> version -> recipe.
    """

    def __init__(self, layout: Layout, flavour: Flavour) -> None:
        self._layout = layout
        self._flavour = flavour
        self._sources: dict[tuple[str, str], Path | None] = {}
        self.pool: dict[str, dict[str, Recipe]] = {}

    def add(self, recipes: Path, artifacts: Path | None) -> list[Recipe]:
        """Read a recipe, or every recipe in a folder; a version that is known is replaced.

        Args:
            recipes: the file or folder.
            artifacts: the folder with `<component>/<version>/<file>`.

        Raises:
            ConfigError: there is none, one is wrong, or two are of the same version.
        """
        found = [read_recipe(file, self._flavour) for file in _recipe_files(recipes)]
        files: dict[tuple[str, str], Path] = {}
        for recipe in found:
            key = (recipe.name, recipe.version)
            if key in files:
                raise ConfigError(
                    f"{files[key]} and {recipe.file} are both {recipe.name} {recipe.version}.", "--recipe"
                )
            files[key] = recipe.file
        for recipe in found:
            self.pool.setdefault(recipe.name, {})[recipe.version] = recipe
            self._sources[recipe.name, recipe.version] = artifacts.resolve() if artifacts is not None else None
        return found

    def versions(self) -> set[tuple[str, str]]:
        """Return the names and versions in the pool."""
        return {(name, version) for name, versions in self.pool.items() for version in versions}

    def forget(self, versions: Iterable[tuple[str, str]]) -> None:
        """Take recipes out of the pool, for the next nucleus in this root too; what is not there is left alone."""
        for name, version in versions:
            self.pool.get(name, {}).pop(version, None)
            self._sources.pop((name, version), None)
            self._forget_kept(name, version)

    def _forget_kept(self, name: str, version: str) -> None:
        for suffix in SUFFIXES:
            (self._layout.recipes / f"{name}-{version}{suffix}").unlink(missing_ok=True)

    def add_kept(self) -> None:
        """Read the recipes that were deployed below this root before; one that does not fit any more is left out."""
        for file in sorted(self._layout.recipes.iterdir()):
            if file.suffix in SUFFIXES:
                try:
                    recipe = read_recipe(file, self._flavour)
                except ConfigError as error:  # deployed into a nucleus of the other flavour, say
                    _log.warning("A recipe that was deployed here before is left out: %s", error)
                    continue
                self.pool.setdefault(recipe.name, {}).setdefault(recipe.version, recipe)

    def install(self, recipe: Recipe, owner: User) -> str:
        """Copy a recipe and its artifacts below the root and unpack what is to be unpacked. Blocks.

        Args:
            recipe: what is to run.
            owner: who the component runs as; the copies become theirs where this process may do that.

        Returns:
            A digest of all of it; copies with the same digest are left as they are.

        Raises:
            ConfigError: an artifact is missing.
            Rejected: an archive must not be unpacked.
            Permanent: the copies cannot be written.
        """
        try:
            return self._install(recipe, owner)
        except OSError as error:
            raise Permanent(f"{recipe.name} {recipe.version} cannot be copied: {error}.") from error

    def _install(self, recipe: Recipe, owner: User) -> str:
        folder = self._layout.artifacts(recipe.name, recipe.version)
        unarchived = self._layout.unarchived(recipe.name, recipe.version)
        seal = folder.parent / f".{recipe.version}.sha256"
        digest = hashlib.sha256(recipe.file.read_bytes() + self._flavour.name.encode())
        wanted = digest.hexdigest()
        last = seal.read_text("utf-8", "replace").split() if seal.exists() else []
        if last[1:] == [wanted] and self._sources.get((recipe.name, recipe.version)) is None:
            return last[0]  # the copies are what there is, and what a component does to its own is its own trouble
        files = [(artifact, self._find(recipe, artifact)) for artifact in recipe.artifacts]
        for artifact, file in files:
            digest.update(f"{artifact!r}".encode())
            with self._open(recipe, file) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        sealed = digest.hexdigest()
        if last == [sealed, wanted]:
            return sealed
        # Files are copied before the old ones go: they may be what the new ones are made from.
        fresh, opened = (old.with_name(f"{old.name}.new") for old in (folder, unarchived))
        for new in (fresh, opened):
            shutil.rmtree(new, ignore_errors=True)  # of an attempt that failed
            new.mkdir(parents=True)
        for artifact, file in files:
            copy = fresh / artifact.file
            with self._open(recipe, file) as stream, copy.open("xb") as written:
                shutil.copyfileobj(stream, written, _CHUNK)
            mode = _READ[artifact.permission.read] | _EXECUTE[artifact.permission.execute]
            if artifact.unarchive == "ZIP" and self._flavour.unpacks_local_artifacts:
                unzip(copy, opened / copy.stem, mode)
            copy.chmod(mode)
        for new, old in ((fresh, folder), (opened, unarchived)):
            shutil.rmtree(old, ignore_errors=True)
            new.replace(old)
            _hand_over(old, owner)
        kept = self._layout.recipes / f"{recipe.name}-{recipe.version}{recipe.file.suffix}"
        if kept != recipe.file:
            self._forget_kept(recipe.name, recipe.version)  # it may have had another suffix
            shutil.copyfile(recipe.file, kept)
        seal.write_text(f"{sealed} {wanted}", "utf-8")
        return sealed

    def _find(self, recipe: Recipe, artifact: Artifact) -> Path:
        kept = self._layout.artifacts(recipe.name, recipe.version)
        source = self._sources.get((recipe.name, recipe.version))
        folder = source / recipe.name / recipe.version if source is not None else kept
        file = folder / artifact.file
        if not file.is_file():
            hint = "" if source is not None else " Say with --artifacts where the artifacts are."
            raise ConfigError(f"The artifact {file} of {recipe.name} {recipe.version} is missing.{hint}", "--artifacts")
        return file

    def _open(self, recipe: Recipe, file: Path) -> BinaryIO:
        """Open an artifact; only the user's own files may be links.

        Copies below the root belong to the component, which may have put a link to another's file in their place.
        """
        kept = self._sources.get((recipe.name, recipe.version)) is None
        return open(file, "rb", opener=_without_links if kept else None)


def _without_links(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _recipe_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ConfigError(f"There is no {place}.", "--recipe")
    files = [
        file for file in sorted(place.iterdir()) if file.suffix in SUFFIXES and file.is_file() and _is_recipe(file)
    ]
    if not files:
        raise ConfigError(f"There is no recipe ({', '.join(SUFFIXES)}) in {place}.", "--recipe")
    return files


def _is_recipe(file: Path) -> bool:
    """Whether a file means to be a recipe: other documents may stand beside it, but misspelt recipes are errors."""
    try:
        with file.open("rb") as stream:
            text = stream.read(1 << 20).lower()
    except OSError:
        return False
    return b"recipeformatversion" in text or b"componentname" in text


def _hand_over(folder: Path, owner: User) -> None:
    if owner.uid == os.geteuid():
        return
    # From within: nobody but this process changes the folders that still have to be entered. What is the owner's
    # already may have been replaced by links.
    for place, _, names in os.walk(folder, topdown=False):
        for name in (*names, ""):
            os.chown(Path(place) / name, owner.uid, owner.gid, follow_symlinks=False)


def unzip(archive: Path, folder: Path, mode: int) -> None:
    """Unpack a zip into a new folder, or nothing of it.

    Args:
        archive: the zip.
        folder: where to; made here.
        mode: the rights of every file; those in the archive count for nothing, as in Greengrass.

    Raises:
        Rejected: it is no zip, is damaged, leads out of the folder, holds links, or is too large; the member is named.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = source.infolist()
            _check(archive, members)
            for member in members:
                target = folder / member.filename
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with source.open(member) as packed, target.open("xb") as plain:
                    shutil.copyfileobj(packed, plain, _CHUNK)
                target.chmod(mode)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Rejected(f"{archive.name} cannot be unpacked: {error}.") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Rejected(f"{archive.name} holds {error.filename} twice, or as file and folder.") from error


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > _MEMBERS_MAX:
        raise Rejected(f"{archive.name} holds {len(members)} members, more than {_MEMBERS_MAX}.")
    size = 0
    for member in members:
        name = member.filename
        kind = stat.S_IFMT(member.external_attr >> 16)
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Rejected(f"{archive.name} holds {name!r}, which leads out of its folder. Nothing of it is used.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Rejected(f"{archive.name} holds {name!r}, which is a link or device. Nothing of it is used.")
        size += member.file_size
        if size > _BYTES_MAX:
            raise Rejected(f"{archive.name} is larger than {_BYTES_MAX} bytes when unpacked, by {name!r}.")
        if size > _RATIO_FROM and size > _RATIO_MAX * archive.stat().st_size:
            raise Rejected(f"{archive.name} is {_RATIO_MAX} times as large when unpacked, by {name!r}.")
