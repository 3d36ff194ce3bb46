"""Lisière: an edge inference runtime for IoT devices.

Importing this package pulls in none of cv2, dlr, onnxruntime or awsiot: a part that needs one of them
imports it when it is opened, so that a device carries only what its configuration asks for.
"""

from __future__ import annotations

__version__ = "0.1.0"
