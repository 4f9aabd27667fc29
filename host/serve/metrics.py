"""Figures of a server for Prometheus, by its own client library."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What is counted; names begin with `tellme_`."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("tellme_requests", "Answers by how they ended.", ["outcome"], registry=r)
        self.prompt = Counter("tellme_prompt_tokens", "Tokens of prompts.", registry=r)
        self.cached = Counter("tellme_cached_tokens", "Tokens of prompts that were not computed again.", registry=r)
        self.new = Counter("tellme_generated_tokens", "Tokens made.", registry=r)
        self.passes = Counter("tellme_passes", "Passes through the model.", registry=r)
        self.lanes = Counter("tellme_lanes", "Lanes of these passes that carried a token.", registry=r)
        self.cycles = Counter("tellme_cycles", "Cycles of these passes, where they are counted.", registry=r)
        self.stalls = Counter("tellme_stall_cycles", "Cycles without a beat.", ["cause"], registry=r)
        self.drafted = Counter("tellme_drafted_tokens", "Tokens guessed.", registry=r)
        self.accepted = Counter("tellme_accepted_tokens", "Guesses that came true.", registry=r)
        self.active = Gauge("tellme_active", "Conversations that have a slot.", registry=r)
        self.waiting = Gauge("tellme_waiting", "Requests that wait for a slot.", registry=r)
        self.watts = Gauge("tellme_watts", "Power of the board, where it has sensors.", registry=r)
        self.first = Histogram("tellme_first_token_seconds", "From request to first token.", buckets=TIMES, registry=r)
        self.between = Histogram("tellme_token_seconds", "Between an answer's tokens.", buckets=TIMES, registry=r)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)
