"""Model folders: their manifest, and the checks before anything of them is loaded."""

from lisiere.models.manifest import Manifest, TensorSpec
from lisiere.models.package import Package, open_package, write_manifest

__all__ = ["Manifest", "Package", "TensorSpec", "open_package", "write_manifest"]
