    // Trace of the units: one record whenever their state changes, and one every 64 cycles for the level of the FIFO.
    import "DPI-C" function int tellme_trace_open();
    import "DPI-C" function void tellme_trace(input longint unsigned cycle, input int unsigned state, input int unsigned level);

    bit tracing;
    bit [31:0] traced = 0;
    wire [31:0] trace_state = {16'(dut.executor.index), 1'(dut.counters.running), 3'b0, 6'(dut.counters.unit_busy),
        6'(dut.counters.cause)};

    initial tracing = tellme_trace_open() != 0;
    always @(posedge clk) if (tracing && (trace_state != traced || tb_cycle[5:0] == 0)) begin
        traced <= trace_state;
        tellme_trace(tb_cycle, trace_state, 32'(dut.reader.level));
    end
