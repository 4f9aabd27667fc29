"""Mistakes that once no test saw: each a line changed, and the tests that see it now. Run by `make mutants`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hole:
    """`old`, which stands once in the file, becomes `new`; one of `tests` must fail."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


DRIVER = "tests/host/machine/test_driver.py"
LOADING = f"{DRIVER}::test_everything_that_loading_says_reaches_its_register"
CACHES = f"{DRIVER}::test_every_pass_is_exact_through_caches_that_are_not_coherent"
CTRL_C = tuple(
    f"{DRIVER}::test_ctrl_c_{name}"
    for name in (
        "during_a_pass_resets_and_the_next_pass_may_start_at_once",
        "stays_ctrl_c_when_the_reset_does_not_help",
    )
)
GENERATE = "tests/host/talk/test_generate.py"
SESSION = "tests/host/talk/test_session.py"
SAMPLING = "tests/host/text/test_sampling.py"
TOKENIZER = "tests/host/text/test_tokenizer.py"
LAYOUTS = "tests/machine/test_layouts.py::test_phases_read_every_key_that_a_lane_attends_to_once"
SCORES = "tests/machine/test_layouts.py::test_the_score_memory_is_filled_to_its_last_word_and_no_further"
FETCH = "tests/control/test_fetch.py"
SUPERVISOR = "tests/control/test_registers.py::test_supervisor_ends_passes_and_counters_count"
FORMAL = "tests/formal/test_formal.py::test_every_claim_is_proved_without_bound"
PORTS = "tests/formal/test_formal.py::test_memory_ports_keep_every_claim_for_the_first_cycles"
READER = "StreamReader, bursts of 2, 2 outstanding"
WRITER = "BeatWriter, bursts of 2, 2 outstanding"
SUPERVISED = (f"{FORMAL}[Supervisor, time-out 0]", f"{FORMAL}[Supervisor, time-out 3]")
READS, WRITES = (f"{PORTS}[{READER}]",), (f"{PORTS}[{WRITER}]",)
SCHEDULER = "tests/host/talk/test_scheduler.py"
ENGINE = "tests/host/talk/test_engine.py"
PROMPT_CACHE = "tests/host/talk/test_prompt_cache.py"
SCREENING = "tests/host/machine/test_screening.py"
SCORER = "tests/head/test_score.py"
UNIT = "tests/attention/test_unit.py"
LARGEST = f"{UNIT}::test_the_largest_sums_fit_their_accumulators"

LAYOUT_TESTS = "tests/golden/test_screen.py"
WALKS = {name: (f"{FORMAL}[{bench}]",) for name, bench in (("executor", "Executor, 2 lanes, sweeps of 1"), ("fetcher", "Fetcher, 2 lanes, without attention"))}  # fmt: skip
PHASES = ("tests/formal/test_formal.py::test_the_phases_of_an_attention_come_in_the_first_cycles",)

HOLES = (
    # ---- lanes that begin in the middle of a word --------------------------------------------------------------------
    Hole("span of lanes, host", "host/machine/passes.py", "(first_lane + lanes - 1) // kpb - first_lane // kpb + 1", "(lanes - 1) // kpb + 1", (SCORES,)),
    Hole("span of lanes, golden", "golden/schedule.py", "hi // kpb - lo // kpb + 1", "(hi - lo) // kpb + 1", (LAYOUTS,)),
    Hole(
        "span of lanes, hardware", "hw/control/sequence.py", "(unit.hi >> beat_key_bits) - (unit.lo >> beat_key_bits)", "(unit.hi - unit.lo) >> beat_key_bits", (FETCH,)
    ),
    Hole("first lane dropped", "host/machine/passes.py", "positions[first], lanes, first, self.kv)", "positions[first], lanes, 0, self.kv)", (SCORES,)),
    # ---- the host's recovery, and caches -----------------------------------------------------------------------------
    Hole("time-out not written", "host/machine/driver.py", '        self.write("timeout", self.timeout_cycles)\n', "", (LOADING,)),
    Hole("slots not written", "host/machine/driver.py", '        self.write("slots", program.slots)\n', "", (LOADING,)),
    Hole("interrupt not enabled", "host/machine/driver.py", '        self.write("irq_enable", done=1)\n', "", (LOADING,)),
    Hole(
        "Ctrl-C resets nothing", "host/machine/driver.py",
        "            with contextlib.suppress(Exception):\n                self.reset()\n            raise\n", "            raise\n", CTRL_C,
    ),
    Hole(
        "Ctrl-C becomes the reset's error", "host/machine/driver.py",
        "            with contextlib.suppress(Exception):\n                self.reset()\n", "            self.reset()\n", CTRL_C,
    ),
    Hole("no flush of a model", "host/machine/driver.py", "        self.device.flush(0, program.kv_address)\n", "", (CACHES,)),
    Hole("flush of a model ends early", "host/machine/driver.py", "self.device.flush(0, program.kv_address)", "self.device.flush(0, program.program_address)", (CACHES,)),
    Hole("a pass's flush goes over the cache", "host/machine/driver.py", "self.device.flush(program.x_address, given.lanes * program.x_beats)", "self.device.flush(0, program.window_beats)", (CACHES,)),
    Hole("no flush of inputs", "host/machine/driver.py", "        self.device.flush(program.x_address, given.lanes * program.x_beats)\n", "", (CACHES,)),
    Hole("flush of one lane's inputs", "host/machine/driver.py", "given.lanes * program.x_beats", "program.x_beats", (CACHES,)),
    Hole("no invalidate of logits", "host/machine/driver.py", "        elif given.write_logits:\n            self.device.invalidate(begin, beats)\n", "        elif given.write_logits:\n", (CACHES,)),
    Hole("invalidate of the first lane's logits", "host/machine/driver.py", "elif given.write_logits:\n            self.device.invalidate(begin, beats)", "elif given.write_logits:\n            self.device.invalidate(begin, stride)", (CACHES,)),
    # ---- text ends where it should -----------------------------------------------------------------------------------
    Hole("last of two stop strings", "host/talk/generate.py", "self._take(min(hits))", "self._take(max(hits))", (GENERATE,)),
    Hole("first named of two stop strings", "host/talk/generate.py", "self._take(min(hits))", "self._take(hits[0])", (GENERATE,)),
    Hole("stop string in the last tail", "host/talk/generate.py", "out = self._stops.push(self._detokenizer.finish())\n", "out = self._detokenizer.finish()\n", (GENERATE,)),
    Hole("stop in the tail not told", "host/talk/generate.py", '            yield text.finish()\n            if text.found:\n                report.stop = "stop"\n', "            yield text.finish()\n", (GENERATE,)),
    Hole("what was kept back is lost", "host/talk/generate.py", "return out + self._stops.finish()", "return out", (GENERATE,)),
    Hole(
        "second document start", "host/talk/session.py",
        "self.tokenizer.encode_more(text) if self._ids else self.tokenizer.encode(text)", "self.tokenizer.encode(text)", (SESSION,),
    ),
    Hole("document start lost", "host/talk/session.py", "[*head, *ids[len(ids) - keep + len(head) :]]", "ids[len(ids) - keep :]", (SESSION,)),
    Hole("document start of a text kept twice", "host/text/tokenizer.py", "                del ids[inside[0]]\n", "                pass\n", (TOKENIZER,)),
    Hole("end token kept", "host/talk/session.py", "*report.new_ids[: len(report.new_ids) - len(ends)]", "*report.new_ids", (SESSION,)),
    Hole("last token counts as cached", "host/talk/scheduler.py", "slot.tokens += c.tokens[len(slot.tokens) : c.computed]\n", "slot.tokens += c.tokens[len(slot.tokens) :]\n", (SCHEDULER,)),
    Hole("one seed for all answers", "host/talk/session.py", "seed=self.sampling.seed + self.totals.answers", "seed=self.sampling.seed", (SESSION,)),
    Hole("answers not counted", "host/talk/session.py", "        self.answers += 1\n", "", (SESSION,)),
    Hole("tie at top-p", "host/text/sampling.py", "np.searchsorted(np.cumsum(p), s.top_p)", 'np.searchsorted(np.cumsum(p), s.top_p, side="right")', (SAMPLING,)),
    Hole("ties by highest id", "host/text/sampling.py", 'np.argsort(-values[chosen], kind="stable")', "np.argsort(values[chosen])[::-1]", (SAMPLING,)),
    # ---- the end of a pass -------------------------------------------------------------------------------------------
    Hole("done before an error of the same cycle", "hw/control/supervise.py", "with m.Elif(self.read_error != ErrorCode.NONE):", "with m.Elif((self.read_error != ErrorCode.NONE) & ~self.done):", SUPERVISED),
    Hole("done before a bad weight of the same cycle", "hw/control/supervise.py", "with m.Elif(self.bad_weight):", "with m.Elif(self.bad_weight & ~self.done):", SUPERVISED),
    Hole("done before an error of a write of the same cycle", "hw/control/supervise.py", "with m.Elif(self.write_error != ErrorCode.NONE):", "with m.Elif((self.write_error != ErrorCode.NONE) & ~self.done):", SUPERVISED),
    Hole("a pass after a time-out begins with its patience", "hw/control/supervise.py", '            with m.State("Idle"):\n                m.d.sync += idle_cycles.eq(0)\n', '            with m.State("Idle"):\n', SUPERVISED),
    Hole("a soft reset while stopping keeps the error", "hw/control/supervise.py", "                with m.If(self.reset_request):\n                    m.d.sync += [self.finished.eq(0), self.error.eq(ErrorCode.NONE), self.error_address.eq(0)]\n                with m.If(self.quiet", "                with m.If(self.quiet", SUPERVISED),
    Hole("stopped before memory has answered", "hw/control/supervise.py", "with m.If(self.quiet & settle[1]):", "with m.If(settle[1]):", SUPERVISED),
    Hole("a time-out before the first descriptor", "hw/control/supervise.py", "Mux(self.descriptor_index == 0, 0, self.descriptor_index - 1)", "self.descriptor_index - 1", SUPERVISED),
    Hole("a soft reset of a pass that is looked at", "hw/control/supervise.py", "                m.next = \"Checking\"\n                with m.If(self.reset_request):\n                    stop()\n", "                m.next = \"Checking\"\n", SUPERVISED),
    Hole("reads after an error", "hw/memory/reader.py", "                & ~flying[-1]\n                & ~self.stop\n", "                & ~flying[-1]\n", READS),
    Hole("writes after an error", "hw/memory/writer.py", "                & ~flying[-1]\n                & ~self.stop\n", "                & ~flying[-1]\n", WRITES),
    Hole("reads in a soft reset", "hw/memory/reader.py", "                & ~self.stop\n                & ~self.drain\n", "                & ~self.stop\n", READS),
    Hole("writes in a soft reset", "hw/memory/writer.py", "                & ~self.stop\n                & ~self.drain\n", "                & ~self.stop\n", WRITES),
    # ---- widths of attention -----------------------------------------------------------------------------------------
    Hole("dot products a bit short", "hw/attention/block.py", "(max(self.config.max_hidden, self.config.max_head_dim) << 14).bit_length() + 1", "(max(self.config.max_hidden, self.config.max_head_dim) << 14).bit_length()", (LARGEST,)),
    Hole("sums of weights short", "hw/attention/block.py", "(self.max_keys << 24).bit_length()", "(self.max_keys << 24).bit_length() - 2", (LARGEST,)),  # one bit is spare
    Hole("weighted sums short", "hw/attention/block.py", "lanes << 23).bit_length() + 1", "lanes << 23).bit_length() - 1", (LARGEST,)),  # one bit is spare
    Hole("weighted sums of a run short", "hw/attention/block.py", "(self.config.key_block << 23).bit_length() + 1", "(self.config.key_block << 23).bit_length() - 1", (LARGEST,)),  # one bit is spare
    Hole("chains a bit short", "hw/attention/block.py", "return 24 + clog2(self.depth)", "return 23 + clog2(self.depth)", (LARGEST,)),
    # ---- numbers -----------------------------------------------------------------------------------------------------
    Hole("arg-max takes the last of equals", "golden/head.py", "return np.argmax(values, axis=-1)", "return values.shape[-1] - 1 - np.argmax(values[..., ::-1], axis=-1)", ("tests/golden/test_head.py",)),
    Hole("scale floor of a zero row", "golden/head.py", "np.maximum(np.abs(x).max(axis=-1), SMALLEST_ABSMAX) * INV_127", "np.maximum(np.abs(x).max(axis=-1), np.float32(1e-30)) * INV_127", ("tests/golden/test_head.py",)),
    Hole("scale floor of features", "golden/elementwise.py", "    a = fp.maximum(fp.mul(stats.amax, r), SMALLEST_ABSMAX)\n", "    a = fp.maximum(fp.mul(stats.amax, r), np.float32(1e-30))\n", ("tests/golden/test_elementwise.py",)),
    Hole("scale floor of a head", "golden/elementwise.py", "fp.maximum(fp.max_abs(y), SMALLEST_ABSMAX)", "fp.maximum(fp.max_abs(y), np.float32(1e-30))", ("tests/golden/test_elementwise.py",)),
    Hole("float64 exponents", "golden/spec.py", "dtype=np.float32) / np.float32(spec.head_dim)", "dtype=np.float64) / np.float64(spec.head_dim)", ("tests/golden/test_spec.py",)),
    Hole("float64 inverse frequencies", "golden/spec.py", "np.float32(1) / power.astype(np.float32)", "(1 / power).astype(np.float32)", ("tests/golden/test_spec.py",)),
    Hole("ties by highest index, hardware", "hw/attention/head.py", "Mux(b.order > a.order, b.as_value(), a.as_value())", "Mux(b.order >= a.order, b.as_value(), a.as_value())", (f"{UNIT}::test_head_with_two_keys_a_beat",)),
    Hole("ties by last beat, hardware", "hw/attention/head.py", "challenger.order > before.order", "challenger.order >= before.order", (UNIT,)),
    Hole("padding rows count, hardware", "hw/attention/head.py", "Mux((row | k) < vocabulary, order, 0)", "order", (UNIT,)),
    # ---- conversations that fill their context -----------------------------------------------------------------------
    Hole("half of a small context for answers", "host/talk/session.py", "max(1, context // 4)", "max(1, context // 2)", (SESSION,)),
    Hole("exchanges go though all fit", "host/talk/session.py", "            if len(ids) <= room:\n                self._messages", "            if len(ids) < room:\n                self._messages", (SESSION,)),
    Hole("tokens go though all fit", "host/talk/session.py", "        if len(ids) <= room:\n            return ids, 0", "        if len(ids) < room:\n            return ids, 0", (SESSION,)),
    Hole("a message that just fits is refused", "host/talk/session.py", "        if len(new) > room:", "        if len(new) >= room:", (SESSION,)),
    Hole("the message itself is cut", "host/talk/session.py", "keep = max(whole, room // 2)", "keep = room // 2", (SESSION,)),
    Hole("half an exchange goes", "host/talk/session.py", "messages, dropped = messages[2:], dropped + 2", "messages, dropped = messages[1:], dropped + 1", (SESSION,)),
    Hole("another try of the first message", "host/talk/session.py", "self._before, self._said = before, text", "self._said = text", (SESSION,)),
    Hole("another try after a new beginning", "host/talk/session.py", "self._messages, self._ids, self._said = [], [], None", "self._messages, self._ids = [], []", (SESSION,)),
    Hole("another try after loading", "host/talk/session.py", "        self._said = None\n        return len(found)", "        return len(found)", (SESSION,)),
    Hole("prefill counts as decode", "host/talk/session.py", "self.seconds_decode += report.seconds - report.seconds_prefill", "self.seconds_decode += report.seconds", (SESSION,)),
    Hole("head lanes of the last guesses", "host/talk/scheduler.py", "first + count - 1, first + lanes\n", "first + count - 1, first + count\n", (SCHEDULER,)),
    Hole("a slot that was given is not used", "host/talk/scheduler.py", "        slot.used = self.passes\n        conversation.computed", "        conversation.computed", (SCHEDULER,)),
    Hole("ports' lead not written", "host/machine/driver.py", '        self.write("port_lead", free=0)\n', "", (LOADING,)),
    Hole("a copy of what the host held", "host/machine/driver.py", "            self.device.invalidate(a, beats)\n", "", (f"{DRIVER}::test_a_cache_is_read_written_and_copied_through_caches_that_are_not_coherent",)),
    Hole("woken is done", "host/machine/driver.py", "if not in_time or not status", "if not in_time and not status", (f"{DRIVER}::test_a_pass_is_done_when_its_register_says_so_and_not_when_somebody_woke",)),
    Hole("a program is of one clock", "host/machine/driver.py", "replace(program.config, clock_hz=self.config.clock_hz) != self.config", "program.config != self.config", (f"{DRIVER}::test_a_program_runs_at_another_clock_than_it_was_compiled_for",)),
    # ---- order of a pass ---------------------------------------------------------------------------------------------
    Hole("candidates of eight", "golden/layout.py", '[: 8 * count].view("<u4")', '[: 8 + count].view("<u4")', (LAYOUT_TESTS,)),
    Hole("every phase of the last unit is final, golden", "golden/schedule.py", "final and last, kv_head", "final, kv_head", (LAYOUTS,)),
    Hole("a program that was refused is fetched", "hw/control/execute.py", "self.program_ready.eq(~check.bad)", "self.program_ready.eq(1)", WALKS["executor"]),
    Hole("QKV over keys that are being written", "hw/control/execute.py", "(d.shared.opcode != Opcode.LINEAR) | (d.linear.kind == Kind.QKV)", "(d.shared.opcode != Opcode.LINEAR)", WALKS["executor"]),
    Hole("gain of a LOAD left out", "hw/control/execute.py", '                        m.next = "Load-Gain"\n', '                        m.next = "Load-X"\n', WALKS["executor"]),
    Hole("done before writes have arrived", "hw/control/execute.py", "with m.If(~self.writer_busy):", "with m.If(1):", WALKS["executor"]),
    Hole("a LINEAR ends before its epilogue", "hw/control/execute.py", "with m.If(~self.epilogue_busy & ~self.quantise_busy):", "with m.If(~self.quantise_busy):", WALKS["executor"]),
    Hole("attention ends before its statistics", "hw/control/execute.py", "with m.If(~self.attention_busy & ~self.collect_busy):", "with m.If(~self.attention_busy):", WALKS["executor"]),
    Hole("no burst ends a fetch that has no beats", "hw/control/fetch.py", "(segments.ready | (self.beats == 0))", "segments.ready", WALKS["fetcher"]),
    Hole("a rotary row is left out", "hw/control/fetch.py", "with m.If(lane != self.parameters.lanes):", "with m.If(lane != self.parameters.lanes - 1):", WALKS["fetcher"]),
    Hole("no last phase at position 0", "hw/control/sequence.py", "last.eq(cached == 0),", "last.eq(0),", PHASES),
    Hole("a cache block that is not there", "hw/control/sequence.py", "newest.eq((cached - 1) >> key_bits)", "newest.eq(cached >> key_bits)", PHASES),
)  # fmt: skip
