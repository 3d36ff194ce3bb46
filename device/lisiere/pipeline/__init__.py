"""Pipelines: source -> queue -> task -> spool, and how they are opened."""

from __future__ import annotations

from lisiere.pipeline.opening import check_models, check_pairing, model_engine, open_pipeline
from lisiere.pipeline.pipeline import Engine, Pipeline, Sink

__all__ = ["Engine", "Pipeline", "Sink", "check_models", "check_pairing", "model_engine", "open_pipeline"]
