"""Choosing a backend: `auto` falls through with reasons, and nothing wrong reaches a runtime."""

from __future__ import annotations

import platform
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from lisiere import backends
from lisiere.backends import BACKENDS, Backend, Model, open_backend, open_model
from lisiere.backends.base import check_feeds
from lisiere.backends.dlr import ENVIRONMENT
from lisiere.errors import LisiereError, Permanent, Rejected
from lisiere.machine import this_machine
from lisiere.models import Package, TensorSpec, open_package
from lisiere.models.manifest import Build, NeoFiles
from support import tiny


@pytest.fixture(scope="module")
def authored(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return open_package(tiny.classifier(tmp_path_factory.mktemp("authored")))


def changed(package: Package, **changes: Any) -> Package:
    return Package(package.path, msgspec.structs.replace(package.manifest, **changes), package.digest)


def compiled(package: Package, arch: str | None = None) -> Package:
    """The package as if it held a Neo artifact for `arch`, by default for this machine."""
    build = Build(target="somewhere", arch=arch or platform.machine(), cpu="", source_sha256="0" * 64, tools={})
    return changed(package, neo=NeoFiles(graph="m.json", params="m.params", library="m.so"), build=build)


class Fake:
    """A loaded model that does nothing."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def run(self, feeds: object) -> dict[str, NDArray[Any]]:
        assert feeds is not None
        return {}

    def close(self) -> None:
        pass


def stub(monkeypatch: pytest.MonkeyPatch, **outcomes: LisiereError | None) -> list[tuple[str, int]]:
    """Replace backends by ones that fail as told, or load; return what is asked of them."""
    asked: list[tuple[str, int]] = []

    def make(name: str, error: LisiereError | None) -> types.SimpleNamespace:
        def load(_: Package, threads: int) -> Model:
            asked.append((name, threads))
            if error is not None:
                raise error
            return Fake()

        return types.SimpleNamespace(load=load)

    modules = {f"lisiere.backends.{name}": make(name, error) for name, error in outcomes.items()}
    monkeypatch.setattr(backends, "import_module", modules.__getitem__)
    return asked


def test_auto_tries_dlr_then_graph_then_onnx() -> None:
    assert BACKENDS == ("dlr", "graph", "onnx")


def test_auto_takes_the_first_that_can(authored: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stub(monkeypatch, dlr=None, graph=None, onnx=None)
    opened = open_model(compiled(authored), threads=3)
    assert (opened.backend, opened.why) == ("dlr", "auto: first choice")
    assert asked == [("dlr", 3)]


def test_auto_falls_through_with_each_reason(authored: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stub(monkeypatch, dlr=Permanent("No libdlr."), graph=Rejected("No kernel."), onnx=None)
    opened = open_model(compiled(authored))
    assert opened.backend == "onnx"
    assert opened.why == "auto: not dlr: No libdlr. not graph: No kernel."
    assert [name for name, _ in asked] == ["dlr", "graph", "onnx"]


def test_auto_says_why_none_can(authored: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, dlr=Permanent("A."), graph=Permanent("B."), onnx=Permanent("C."))
    with pytest.raises(Rejected, match=r"No backend can run .* not dlr: A\. not graph: B\. not onnx: C\."):
        open_model(compiled(authored))


def test_auto_does_not_hide_a_defect(authored: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(backends, "import_module", lambda _: types.SimpleNamespace(load=load))
    with pytest.raises(ZeroDivisionError):
        open_model(authored)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_configured_backend_is_the_only_one_tried(
    authored: Package, monkeypatch: pytest.MonkeyPatch, name: Backend
) -> None:
    asked = stub(monkeypatch, **{name: None})
    opened = open_model(compiled(authored), name)
    assert (opened.backend, opened.why) == (name, "configured")
    asked = stub(monkeypatch, **{name: Permanent("It cannot.")})
    with pytest.raises(Permanent, match="It cannot"):
        open_model(compiled(authored), name)
    assert asked == [(name, 1)]


@pytest.mark.parametrize("name", ["dlr", "graph"])
def test_an_artifact_for_another_machine_is_rejected_before_it_is_loaded(
    authored: Package, monkeypatch: pytest.MonkeyPatch, name: Backend
) -> None:
    asked = stub(monkeypatch, dlr=None, graph=None, onnx=None)
    other = compiled(authored, arch="riscv64")
    with pytest.raises(Rejected, match=f"riscv64, but this machine is {platform.machine()}"):
        open_backend(name, other)
    assert asked == []
    assert open_model(other).backend == "onnx"
    assert "riscv64" in open_model(other).why


@pytest.mark.parametrize("name", ["dlr", "graph"])
def test_an_artifact_for_a_richer_cpu_is_rejected_before_it_is_loaded(
    authored: Package, monkeypatch: pytest.MonkeyPatch, name: Backend
) -> None:
    """Its first kernel would end the process by an illegal instruction."""
    asked = stub(monkeypatch, dlr=None, graph=None, onnx=None)
    own = compiled(authored)
    assert own.manifest.build is not None
    build = msgspec.structs.replace(own.manifest.build, cpu="tomorrow", features=("avx9999",))
    if this_machine().features is None:
        pytest.skip("The features of this machine cannot be told.")
    with pytest.raises(Rejected, match="the CPU tomorrow, but this machine's lacks avx9999"):
        open_backend(name, changed(own, build=build))
    assert asked == []


@pytest.mark.parametrize("name", ["dlr", "graph"])
def test_a_folder_without_an_artifact_is_rejected(authored: Package, name: Backend) -> None:
    with pytest.raises(Rejected, match="no Neo artifact"):
        open_backend(name, authored)


def test_a_folder_without_an_onnx_file_is_rejected(authored: Package) -> None:
    with pytest.raises(Rejected, match="no ONNX file"):
        open_backend("onnx", changed(authored, onnx=None))


def test_an_authored_package_runs_by_onnx(authored: Package) -> None:
    opened = open_model(authored)
    assert opened.backend == "onnx"
    assert opened.why.startswith("auto: not dlr: ")
    result = opened.model.run({"image": np.zeros((1, 3, 8, 8), np.float32)})
    assert [(name, array.shape) for name, array in result.items()] == [("scores", (1, 3))]
    opened.model.close()


def test_a_closed_model_says_so_and_may_be_closed_twice(authored: Package) -> None:
    model = open_backend("onnx", authored)
    model.close()
    model.close()
    with pytest.raises(Permanent, match="closed"):
        model.run({"image": np.zeros((1, 3, 8, 8), np.float32)})


def test_results_may_be_kept(authored: Package) -> None:
    model = open_backend("onnx", authored)
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, (2, 1, 3, 8, 8)).astype(np.float32)
    first = model.run({"image": one})["scores"]
    kept = first.copy()
    second = model.run({"image": two})["scores"]
    assert (first == kept).all()
    assert not np.shares_memory(first, second)
    model.close()


GOOD = np.zeros((1, 3, 8, 8), np.float32)
WRONG = [
    {},
    {"picture": GOOD},
    {"image": GOOD, "more": GOOD},
    {"image": np.zeros((1, 3, 8, 9), np.float32)},
    {"image": np.zeros((1, 8, 8, 3), np.float32)},
    {"image": np.zeros((3, 8, 8), np.float32)},
    {"image": np.zeros((2, 3, 8, 8), np.float32)},
    {"image": np.zeros(192, np.float32)},
    {"image": np.float32(0)},
    {"image": GOOD.astype(np.float64)},
    {"image": GOOD.astype(np.uint8)},
    {"image": GOOD.astype(">f4")},
    {"image": GOOD.astype(object)},
]


@pytest.mark.parametrize("feeds", WRONG)
def test_wrong_feeds_are_rejected(authored: Package, feeds: dict[str, Any]) -> None:
    model = open_backend("onnx", authored)
    with pytest.raises(Rejected):
        model.run(feeds)
    model.close()


def test_the_message_says_what_was_wanted_and_given() -> None:
    specs = (TensorSpec(name="a", shape=(2,)), TensorSpec(name="b", shape=(3,), dtype="int64"))
    with pytest.raises(Rejected, match=r"takes the inputs a, b, but was given none"):
        check_feeds(specs, {})
    with pytest.raises(Rejected, match=r"'b' is int64 \[3\], but was given float32 \[3\]"):
        check_feeds(specs, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(Rejected, match=r"'a' is float32 \[2\], but was given >f4 \[2\]"):
        check_feeds(specs, {"a": np.zeros(2, ">f4"), "b": np.zeros(3, np.int64)})


def test_feeds_come_in_the_order_of_the_model_and_contiguous() -> None:
    specs = (TensorSpec(name="a", shape=(2, 3)), TensorSpec(name="b", shape=(3,)))
    turned = np.arange(6, dtype=np.float32).reshape(3, 2).T
    reverse = np.arange(3, dtype=np.float32)[::-1]
    first, second = check_feeds(specs, {"b": reverse, "a": turned})
    assert first.flags.c_contiguous
    assert second.flags.c_contiguous
    assert (first == turned).all()
    assert second.tolist() == [2, 1, 0]


def test_an_onnx_file_that_is_none_is_permanent(tmp_path: Path) -> None:
    package = open_package(tiny.classifier(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"no")
    with pytest.raises(Permanent, match="ONNX Runtime refuses"):
        open_backend("onnx", package)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": (TensorSpec(name="picture", shape=(1, 3, 8, 8)),)},
        {"inputs": (TensorSpec(name="image", shape=(1, 3, 16, 16)),)},
        {"outputs": (TensorSpec(name="logits", shape=(1, 3)),)},
        {"outputs": (TensorSpec(name="scores", shape=(1, 4)),)},
        {"inputs": (TensorSpec(name="image", shape=(1, 3, 8, 8), dtype="uint8"),)},
        {"outputs": (TensorSpec(name="scores", shape=(1, 3), dtype="float64"),)},
    ],
)
def test_an_onnx_file_of_another_interface_is_rejected(authored: Package, changes: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="manifest says"):
        open_backend("onnx", changed(authored, **changes))


def test_without_onnx_runtime_it_says_what_to_install(authored: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Permanent, match=r"lisiere\[onnx\]"):
        open_backend("onnx", authored)


def test_without_libdlr_it_says_what_to_do(authored: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(sys, "path", [])  # where the record of its wheel is looked for
    with pytest.raises(Permanent, match=f"libdlr was not found.*{ENVIRONMENT}"):
        open_backend("dlr", compiled(authored))


@pytest.mark.parametrize("data", [None, b"", b"no library"])
def test_a_libdlr_that_is_none_is_permanent(
    authored: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes | None
) -> None:
    file = tmp_path / "libdlr.so"
    if data is not None:
        file.write_bytes(data)
    monkeypatch.setenv(ENVIRONMENT, str(file))
    with pytest.raises(Permanent, match="could not be loaded"):
        open_backend("dlr", compiled(authored))


@pytest.mark.parametrize("made", [[np.zeros((1, 5), np.float32)], RuntimeError("The GPU is gone.")])
def test_a_runtime_that_fails_is_permanent(
    authored: Package, monkeypatch: pytest.MonkeyPatch, made: list[NDArray[Any]] | Exception
) -> None:
    class Session:
        def run(self, *_: object) -> list[NDArray[Any]]:
            if isinstance(made, Exception):
                raise made
            return made

    model = open_backend("onnx", authored)
    monkeypatch.setattr(model, "_session", Session())
    with pytest.raises(Permanent, match="ONNX Runtime failed"):
        model.run({"image": GOOD})
