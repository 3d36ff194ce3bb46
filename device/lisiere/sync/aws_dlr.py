"""The message of AWS's component aws.greengrass.DLRImageClassification, for subscribers that were written for it.

Source: what the sample's prediction_utils.py publishes, in its version 2.1. It carries neither an id nor a seq.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

_RESULTS_MAX = 5
_SCORE_LEAST = 0.3


class AwsDlrResult(Struct, frozen=True, kw_only=True):
    """One label; the sample writes its score as a string."""

    label: str = msgspec.field(name="Label")
    score: str = msgspec.field(name="Score")


class AwsDlrMessage(Struct, frozen=True, kw_only=True, rename="kebab"):
    """One classification. The time stamp is in UTC here; the sample's is the device's local time."""

    timestamp: str
    inference_type: str = "image-classification"
    inference_description: str = f"Top {_RESULTS_MAX} predictions with score {_SCORE_LEAST} or above "
    inference_results: list[AwsDlrResult]


def aws_dlr_message(body: bytes) -> bytes:
    """Return a classification's message, made of its body in the spool."""
    stored: dict[str, Any] = msgspec.json.decode(body)
    return msgspec.json.encode(
        AwsDlrMessage(
            timestamp=stored["ts"].replace("T", " ").removesuffix("Z") + "000",  # microseconds, as the sample has them
            inference_results=[
                AwsDlrResult(label=one["label"], score=str(one["score"]))
                for one in stored["result"].get("top", [])[:_RESULTS_MAX]
                if one["score"] >= _SCORE_LEAST
            ],
        )
    )
