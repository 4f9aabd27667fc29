// AXI4 memory behind all ports of the accelerator: a region each, of which `data` holds beat by beat what belongs together.
// Answers after LATENCY cycles, in order; readies and beats are held back at random. A broken rule of the bus ends the simulation.
module tellme_memory #(
    parameter int PORTS = 1,
    parameter int PORT_BYTES = 16,
    parameter int ADDRESS_BITS = 40,
    parameter int BEATS = 1,
    parameter int LATENCY = 24,
    parameter int BURST = 64,
    parameter bit [PORTS-1:0][63:0] BASES = '0
) (
    input logic clk,
    input logic rst,

    input  logic [PORTS-1:0] arvalid,
    output logic [PORTS-1:0] arready,
    input  logic [PORTS-1:0][ADDRESS_BITS-1:0] araddr,
    input  logic [PORTS-1:0][7:0] arlen,
    input  logic [PORTS-1:0][2:0] arsize,
    input  logic [PORTS-1:0][1:0] arburst,
    output logic [PORTS-1:0] rvalid,
    input  logic [PORTS-1:0] rready,
    output logic [PORTS-1:0][PORT_BYTES*8-1:0] rdata,
    output logic [PORTS-1:0] rlast,

    input  logic [PORTS-1:0] awvalid,
    output logic [PORTS-1:0] awready,
    input  logic [PORTS-1:0][ADDRESS_BITS-1:0] awaddr,
    input  logic [PORTS-1:0][7:0] awlen,
    input  logic [PORTS-1:0][2:0] awsize,
    input  logic [PORTS-1:0][1:0] awburst,
    input  logic [PORTS-1:0] wvalid,
    output logic [PORTS-1:0] wready,
    input  logic [PORTS-1:0][PORT_BYTES*8-1:0] wdata,
    input  logic [PORTS-1:0][PORT_BYTES-1:0] wstrb,
    input  logic [PORTS-1:0] wlast,
    output logic [PORTS-1:0] bvalid,
    input  logic [PORTS-1:0] bready
);
    localparam int QUEUE = 16;  // bursts that a port keeps, of each direction

    logic [PORTS*PORT_BYTES*8-1:0] data [0:BEATS-1];

    typedef struct {
        int unsigned beat;   // of the next transfer
        int unsigned left;   // transfers to come
        longint unsigned at; // cycle from which on it is answered
    } burst_t;
    burst_t reads [PORTS][QUEUE], writes [PORTS][QUEUE];
    int unsigned read_first [PORTS], read_count [PORTS], write_first [PORTS], write_count [PORTS], owed [PORTS];
    longint unsigned cycle;
    bit [31:0] noise;

    // What was offered and not taken must still be there: a rule that receivers rely on.
    logic [PORTS-1:0] ar_waits, aw_waits, w_waits;
    logic [PORTS-1:0][ADDRESS_BITS+12:0] ar_was, aw_was;
    logic [PORTS-1:0][PORT_BYTES*9:0] w_was;

    function automatic int unsigned checked(int port, bit writes_, bit [ADDRESS_BITS-1:0] address, bit [7:0] length,
                                            bit [2:0] size, bit [1:0] kind);
        bit [63:0] offset = 64'(address) - BASES[port];
        if (kind != 2'b01 || (1 << size) != PORT_BYTES || offset % PORT_BYTES != 0 || int'(length) >= BURST)
            $fatal(1, "port %0d: burst of kind %0d, size %0d, length %0d at %h", port, kind, size, length, address);
        if (address[11:0] + (int'(length) + 1) * PORT_BYTES > 4096)
            $fatal(1, "port %0d: burst crosses 4 KiB at %h", port, address);
        if (64'(address) < BASES[port] || offset / PORT_BYTES + 64'(length) >= 64'(BEATS))
            $fatal(1, "port %0d: %s outside the memory, at %h", port, writes_ ? "write" : "read", address);
        return int'(offset / PORT_BYTES);
    endfunction

    always @(posedge clk) begin
        cycle = cycle + 1;
        for (int i = 0; i < PORTS; i++) begin
            noise = {noise[30:0], noise[31] ^ noise[21] ^ noise[1] ^ noise[0]};

            if (ar_waits[i] && !(arvalid[i] && ar_was[i] == {araddr[i], arlen[i], arsize[i], arburst[i]}))
                $fatal(1, "port %0d: a read address was withdrawn", i);
            if (aw_waits[i] && !(awvalid[i] && aw_was[i] == {awaddr[i], awlen[i], awsize[i], awburst[i]}))
                $fatal(1, "port %0d: a write address was withdrawn", i);
            if (w_waits[i] && !(wvalid[i] && w_was[i] == {wdata[i], wstrb[i], wlast[i]}))
                $fatal(1, "port %0d: write data was withdrawn", i);
            ar_waits[i] <= !rst && arvalid[i] && !arready[i];
            aw_waits[i] <= !rst && awvalid[i] && !awready[i];
            w_waits[i] <= !rst && wvalid[i] && !wready[i];
            ar_was[i] <= {araddr[i], arlen[i], arsize[i], arburst[i]};
            aw_was[i] <= {awaddr[i], awlen[i], awsize[i], awburst[i]};
            w_was[i] <= {wdata[i], wstrb[i], wlast[i]};

            // Reads.
            if (arvalid[i] && arready[i]) begin
                automatic int unsigned place = (read_first[i] + read_count[i]) % QUEUE;
                reads[i][place].beat = checked(i, 0, araddr[i], arlen[i], arsize[i], arburst[i]);
                reads[i][place].left = int'(arlen[i]) + 1;
                reads[i][place].at = cycle + 64'(LATENCY);
                read_count[i] = read_count[i] + 1;
            end
            if (!rvalid[i] || rready[i]) begin
                rvalid[i] <= 0;
                if (read_count[i] != 0 && reads[i][read_first[i]].at <= cycle && noise[2:0] != 0) begin
                    rvalid[i] <= 1;
                    rdata[i] <= data[reads[i][read_first[i]].beat][i*PORT_BYTES*8+:PORT_BYTES*8];
                    rlast[i] <= reads[i][read_first[i]].left == 1;
                    reads[i][read_first[i]].beat = reads[i][read_first[i]].beat + 1;
                    reads[i][read_first[i]].left = reads[i][read_first[i]].left - 1;
                    if (reads[i][read_first[i]].left == 0) begin
                        read_first[i] = (read_first[i] + 1) % QUEUE;
                        read_count[i] = read_count[i] - 1;
                    end
                end
            end
            arready[i] <= read_count[i] < QUEUE - 1 && noise[5:4] != 0;

            // Writes: data may come before its address is taken, and then waits.
            if (awvalid[i] && awready[i]) begin
                automatic int unsigned place = (write_first[i] + write_count[i]) % QUEUE;
                writes[i][place].beat = checked(i, 1, awaddr[i], awlen[i], awsize[i], awburst[i]);
                writes[i][place].left = int'(awlen[i]) + 1;
                write_count[i] = write_count[i] + 1;
            end
            if (wvalid[i] && wready[i]) begin
                for (int b = 0; b < PORT_BYTES; b++)
                    if (wstrb[i][b]) data[writes[i][write_first[i]].beat][(i*PORT_BYTES+b)*8+:8] = wdata[i][b*8+:8];
                if (wlast[i] != (writes[i][write_first[i]].left == 1)) $fatal(1, "port %0d: WLAST at the wrong beat", i);
                writes[i][write_first[i]].beat = writes[i][write_first[i]].beat + 1;
                writes[i][write_first[i]].left = writes[i][write_first[i]].left - 1;
                if (wlast[i]) begin
                    write_first[i] = (write_first[i] + 1) % QUEUE;
                    write_count[i] = write_count[i] - 1;
                    owed[i] = owed[i] + 1;
                end
            end
            // An item is taken in the cycle behind this one, of a burst that is known now.
            wready[i] <= write_count[i] != 0 && noise[8:7] != 0;
            awready[i] <= write_count[i] < QUEUE - 1 && noise[11:10] != 0;
            if (!bvalid[i] || bready[i]) begin
                bvalid[i] <= owed[i] != 0 && noise[14:13] != 0;
                if (owed[i] != 0 && noise[14:13] != 0) owed[i] = owed[i] - 1;
            end

            if (rst) begin
                read_first[i] = 0; read_count[i] = 0; write_first[i] = 0; write_count[i] = 0; owed[i] = 0;
                arready[i] <= 0; rvalid[i] <= 0; awready[i] <= 0; wready[i] <= 0; bvalid[i] <= 0;
            end
        end
    end

    initial begin
        cycle = 0;
        noise = 32'h5eed_cafe;
        ar_waits = 0;
        aw_waits = 0;
        w_waits = 0;
        for (int b = 0; b < BEATS; b++) data[b] = '0;
    end
endmodule
