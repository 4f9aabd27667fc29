"""A bench in SystemVerilog for TlmmEngine: it feeds jobs from files while Python sleeps, and writes rows to a file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from cocotb.simtime import get_sim_time
from cocotb.triggers import RisingEdge, Timer, with_timeout

from tellme.golden.config import AcceleratorConfig
from tellme.golden.layout import pack_linear
from tellme.golden.ternary import EXPONENT_STEP, GROUP, grouped_linear, linear
from tellme.hw.interfaces import EXPONENT_BITS
from tellme.hw.tlmm.engine import TlmmEngine
from tellme.sim import runner

MAX_JOBS = 256


def _bench(config: AcceleratorConfig, beats: int, words: int) -> str:
    c = config
    lane_bits, lanes_bits = max(1, (c.lanes - 1).bit_length()), c.lanes.bit_length()
    word_bits = (c.max_features // c.word - 1).bit_length()
    row_bits = c.row_width * c.lanes
    stored = c.word + (1 if c.packing.group else 0)  # bytes of a word; the last one is its exponent
    exponent = f"\n    .int8__exponent(q_data[{8 * c.word} +: {EXPONENT_BITS}])," if c.packing.group else ""
    return f"""
module tb;
  timeunit 1ns; timeprecision 1ps;
  logic clk = 0;
  always #2 clk = ~clk;
  logic go = 0, loaded, finished;
  logic [31:0] seed = 1;
  logic [15:0] jobs = 0;
  logic [8:0] p_beats = 256, p_rows = 256, p_quantised = 256;
  bench bench(.*);
endmodule

module bench(input clk, input go, input [31:0] seed, input [15:0] jobs,
             input [8:0] p_beats, input [8:0] p_rows, input [8:0] p_quantised,
             output logic loaded, output logic finished);
  // A job: first beat, first word of its activations, words of a lane, and the engine's inputs.
  typedef struct packed {{ logic [31:0] beat, q, stride; logic [15:0] tiles, rows, block_rows, lanes; }} job_t;
  logic [{8 * c.beat_bytes - 1}:0] beat_memory [{beats}];
  logic [{8 * stored - 1}:0] q_memory [{words}];
  logic [159:0] job_memory [{MAX_JOBS}];
  integer rows_file, log_file;

  logic rst, start, busy, done, beat_valid, beat_ready, row_valid, row_ready, bad, stall_tables, stall_rows, q_en;
  logic [{row_bits - 1}:0] row, held_row;
  logic [{lane_bits - 1}:0] q_lane;
  logic [{word_bits - 1}:0] q_word;
  logic [{8 * stored - 1}:0] q_data;
  job_t job;
  assign job = job_memory[index];
  logic [31:0] quantised, beat_index, taken, cycles, waited_tables, waited_rows, seen, drained, faults, expected;
  logic [31:0] random_beats, random_rows, random_quantised;
  logic [15:0] index;
  logic [3:0] phase;
  logic held;

  function automatic logic [31:0] next(input logic [31:0] x);
    x ^= x << 13; x ^= x >> 17; x ^= x << 5; return x;
  endfunction

  dut dut(.clk(clk), .rst(rst), .start(start), .tiles(job.tiles), .rows(job.rows), .block_rows(job.block_rows),
    .lanes(job.lanes[{lanes_bits - 1}:0]), .busy(busy), .done(done), .beats__valid(beat_valid),
    .beats__ready(beat_ready), .beats__payload(beat_valid ? beat_memory[beat_index] : '1), .quantised(quantised),
    .int8__lane(q_lane), .int8__word(q_word), .int8__en(q_en), .int8__data(q_data[{8 * c.word - 1}:0]),{exponent} .rows_out__valid(row_valid),
    .rows_out__ready(row_ready), .rows_out__payload(row), .bad_weight(bad),
    .stall_tables(stall_tables), .stall_rows(stall_rows));

  localparam IDLE = 0, RESET = 1, START = 2, RUN = 3, DRAIN = 4, OVER = 5;
  // Place of a word in the quantiser's order: a word read too early must be seen to be wrong.
  wire [31:0] place = ((32'(q_word) / {c.tile_words}) * 32'(job.lanes) + 32'(q_lane)) * {c.tile_words}
    + 32'(q_word) % {c.tile_words};

  wire [31:0] q_at = job.q + 32'(q_lane) * job.stride + 32'(q_word);
  wire [31:0] written = 32'(job.tiles) * 32'(job.lanes) * {c.tile_words};  // by the quantiser, in all
  wire offering = phase != IDLE && phase < DRAIN;

  initial begin finished = 0; loaded = 0; phase = IDLE; rst = 1; start = 0; beat_valid = 0; row_ready = 0; end
  always @(posedge clk) begin
    random_beats <= next(random_beats); random_rows <= next(random_rows); random_quantised <= next(random_quantised);
    // The buffer's output holds for one cycle only.
    q_data <= !q_en ? {{{stored}{{8'h5a}}}} : place < quantised ? q_memory[q_at] : ~q_memory[q_at];
    start <= 0;
    if (start) begin cycles <= 0; taken <= 0; waited_tables <= 0; waited_rows <= 0; end
    else cycles <= cycles + 1;
    if (stall_tables) waited_tables <= waited_tables + 1;
    if (stall_rows) waited_rows <= waited_rows + 1;
    if (beat_valid && beat_ready) begin beat_index <= beat_index + 1; taken <= start ? 1 : taken + 1; end
    if (!beat_valid || beat_ready) beat_valid <= offering && {{1'b0, random_beats[15:8]}} < p_beats;
    row_ready <= {{1'b0, random_rows[15:8]}} < p_rows && phase > RESET;
    if (row_valid && row_ready) begin $fwrite(rows_file, "%h\\n", row); drained <= drained + 1; end
    held <= row_valid && !row_ready; held_row <= row;
    if (held && (!row_valid || row != held_row)) faults <= faults + 1;
    if (busy && done) faults <= faults + 1;
    if (busy && {{1'b0, random_quantised[15:8]}} < p_quantised && quantised < written)
      quantised <= quantised + 1;
    case (phase)
      IDLE: if (go) begin
        $readmemh("beats.hex", beat_memory); $readmemh("q.hex", q_memory); $readmemh("jobs.hex", job_memory);
        rows_file = $fopen("rows.hex", "w"); log_file = $fopen("log.txt", "w");
        rst <= 1; phase <= RESET; seen <= 0; held <= 0;
        random_beats <= seed * 3 + 1; random_rows <= seed * 5 + 2; random_quantised <= seed * 7 + 3;
      end
      RESET: begin
        seen <= seen + 1;
        if (seen == 4) begin rst <= 0; phase <= START; end
        loaded <= 1;
        index <= 0; beat_index <= 0; quantised <= 0; drained <= 0; faults <= 0; expected <= 0; beat_valid <= 0;
      end
      START: begin
        start <= 1; phase <= RUN; expected <= expected + 32'(job.rows);
        quantised <= p_quantised[8] ? written : 0;
      end
      RUN: if (done) begin
        $fwrite(log_file, "%0d %0d %0d %0d %0d\\n", cycles + 1, taken, waited_tables, waited_rows, bad);
        if (index + 1 == jobs) phase <= DRAIN;
        else begin index <= index + 1; phase <= START; end
      end
      DRAIN: begin
        seen <= drained == expected ? seen + 1 : 0;
        if (seen == 8) begin
          $fwrite(log_file, "%0d %0d\\n", faults, drained); $fclose(rows_file); $fclose(log_file);
          phase <= OVER; finished <= 1;
        end
      end
      default: if (!go) begin finished <= 0; loaded <= 0; phase <= IDLE; end
    endcase
  end
endmodule
"""


@cache
def build(config: AcceleratorConfig, beats: int, words: int, form: str = "rtl") -> Path:
    """Builds engine and bench; `beats` and `words` bound what all jobs of a run may use."""
    text, sources, args = runner.sources_of(TlmmEngine(config), form)
    return runner.build(
        text + _bench(config, beats, words), top="tb", public=("tb",), args=["--timing", *args], sources=sources
    )


def run(
    config: AcceleratorConfig,
    module: str,
    check: str,
    size: tuple[int, int],
    *,
    form: str = "rtl",
    **parameters: Any,
) -> None:
    """Runs cocotb test `check` of `module` on a bench for `size` (beats, words)."""
    runner.run(build(config, *size, form), module, top="tb", testcase=check, parameters=parameters, seed=1, name=check)


@dataclass
class Job:
    """A matrix, its activations, and how it is run."""

    weights: np.ndarray
    """int8 (rows, K), -1, 0, 1; K a whole number of tiles."""
    q: np.ndarray
    """int8 (lanes, K)."""
    block_rows: int
    exponents: np.ndarray | None = None
    """int8 (lanes, K / 64), of a format of weights with groups."""
    bad: tuple[int, int] | None = None
    """Beat and byte to spoil with a value that is no code."""


@dataclass
class Result:
    """What a job did."""

    rows: np.ndarray
    cycles: int
    taken: int
    stall_tables: int
    stall_rows: int
    bad: bool


def pack(job: Job, config: AcceleratorConfig) -> np.ndarray:
    """Beats of the matrix, uint8 (beats, beat_bytes), in the order row block, K tile, row."""
    packed = pack_linear(job.weights, config, job.block_rows)
    if job.bad:
        packed[job.bad] = 243
    return packed


def _lines(a: np.ndarray) -> str:
    """Hexadecimal, one row of bytes a line, byte 0 lowest."""
    return "\n".join(bytes(r[::-1]).hex() for r in a.view(np.uint8)) + "\n"


async def play(
    dut: Any,
    config: AcceleratorConfig,
    jobs: list[Job],
    *,
    seed: int = 1,
    beats: int = 256,
    rows: int = 256,
    quantised: int = 256,
) -> list[Result]:
    """Runs jobs back to back; probabilities in 1/256 that a beat, a row's taker, a new word is there in a cycle."""
    packed, words, table = [], [], []
    beat = word = 0
    for j in jobs:
        p = pack(j, config)
        lanes, k = j.q.shape
        w = np.ascontiguousarray(j.q).view(np.uint8).reshape(-1, config.word)
        if j.exponents is not None:
            codes = np.repeat(j.exponents.astype(np.uint8) // EXPONENT_STEP, GROUP // config.word, axis=1)
            w = np.concatenate([w, codes.reshape(-1, 1)], axis=1)
        fields = (j.block_rows, 16), (j.weights.shape[0], 16), (k // config.beat_weights, 16)
        entry, shift = lanes, 16
        for value, bits in (*fields, (k // config.word, 32), (word, 32), (beat, 32)):
            entry |= value << shift
            shift += bits
        table.append(f"{entry:040x}")
        packed.append(p)
        words.append(w)
        beat, word = beat + len(p), word + len(w)
    Path("beats.hex").write_text(_lines(np.concatenate(packed)))
    Path("q.hex").write_text(_lines(np.concatenate(words)))
    Path("jobs.hex").write_text("\n".join(table) + "\n")
    dut.seed.value = seed
    dut.jobs.value = len(jobs)
    dut.p_beats.value, dut.p_rows.value, dut.p_quantised.value = beats, rows, quantised
    await Timer(8, "ns")
    dut.go.value = 1
    await RisingEdge(dut.loaded)
    began, simulated = process_time(), get_sim_time("ns")
    await with_timeout(RisingEdge(dut.finished), 4 * (60 * beat + 100_000), "ns")
    cycles = (get_sim_time("ns") - simulated) / 4
    print(f"{cycles:.0f} cycles at {cycles / (process_time() - began) / 1e3:.1f} kHz of CPU time")
    dut.go.value = 0
    await Timer(40, "ns")
    log = [[int(x) for x in line.split()] for line in Path("log.txt").read_text().splitlines()]
    faults, drained = log.pop()
    assert faults == 0, f"{faults} protocol faults: a row changed while it waited, or busy and done together"
    assert drained == sum(len(j.weights) for j in jobs), f"{drained} rows came"
    text = Path("rows.hex").read_text().split()
    digits = -(-config.row_width * config.lanes // 8) * 2
    raw = np.frombuffer(bytes.fromhex("".join(t.zfill(digits) for t in text)), np.uint8).reshape(len(text), -1)
    bits = np.unpackbits(raw, axis=1)[:, ::-1][:, : config.row_width * config.lanes]
    weight = 1 << np.arange(config.row_width, dtype=np.int64)
    weight[-1] *= -1
    values = bits.reshape(len(text), config.lanes, config.row_width) @ weight
    results, at = [], 0
    for j, (cycles, taken, tables, waits, bad) in zip(jobs, log, strict=True):
        n = len(j.weights)
        results.append(Result(values[at : at + n], cycles, taken, tables, waits, bool(bad)))
        at += n
    return results


def reference(job: Job, config: AcceleratorConfig) -> np.ndarray:
    """Exact rows, int64 (rows, lanes), idle lanes 0."""
    out = np.zeros((len(job.weights), config.lanes), np.int64)
    if job.exponents is None:
        out[:, : len(job.q)] = linear(job.weights, job.q).T
    else:
        out[:, : len(job.q)] = grouped_linear(job.weights, job.q, job.exponents).T
    return out


async def check(dut: Any, config: AcceleratorConfig, jobs: list[Job], **how: int) -> list[Result]:
    """Plays jobs and compares every row."""
    results = await play(dut, config, jobs, **how)
    for n, (job, result) in enumerate(zip(jobs, results, strict=True)):
        assert result.taken == len(pack(job, config)), f"job {n}: {result.taken} beats taken"
        wrong = np.argwhere(result.rows != reference(job, config))
        assert not len(wrong), (
            f"job {n} {job.weights.shape} lanes {len(job.q)}: {len(wrong)} wrong, first (row, lane) {wrong[0]}"
        )
        assert not result.bad
    return results
