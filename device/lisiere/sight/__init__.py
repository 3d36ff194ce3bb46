"""Input health of frames: whether what a camera shows can be trusted, and which frames the model is asked of."""

from lisiere.sight.gate import Gate
from lisiere.sight.judge import Seen, Sight

__all__ = ["Gate", "Seen", "Sight"]
