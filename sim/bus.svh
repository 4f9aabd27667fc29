    // Register bus and waiting, on behalf of Python: it sets a request and wakes at the answer, and at nothing between.
    // kind 0: read, 1: write, 2: run until irq or until `request_cycles` have gone by, 4: hold everything in reset for as long.
    bit request /* verilator public_flat_rw */ = 0;  // toggled by Python
    bit [2:0] request_kind /* verilator public_flat_rw */ = 0;
    bit [31:0] request_address /* verilator public_flat_rw */ = 0;
    bit [31:0] request_data /* verilator public_flat_rw */ = 0;
    bit [31:0] request_cycles /* verilator public_flat_rw */ = 0;
    bit answer /* verilator public_flat_rw */ = 0;  // follows `request`
    bit [31:0] answer_data /* verilator public_flat_rd */ = 0;
    bit [1:0] answer_response /* verilator public_flat_rd */ = 0;
    bit answer_irq /* verilator public_flat_rd */ = 0;
    bit [63:0] answer_cycle /* verilator public_flat_rd */ = 0;

    localparam int BUS_TIMEOUT = 10000;  // cycles that a register access may take
    enum bit [2:0] {IDLE, READ, WRITE, RUN, HOLD, WAKE} bus_state = IDLE;
    int unsigned bus_left = 0;

    assign s_awprot = 0;
    assign s_arprot = 0;
    assign s_wstrb = 4'b1111;
    assign s_bready = 1;
    assign s_rready = 1;

    task automatic give(bit [31:0] data, bit [1:0] response);
        answer <= request;
        answer_data <= data;
        answer_response <= response;
        answer_irq <= irq;
        answer_cycle <= tb_cycle;
        bus_state <= IDLE;
    endtask

    always @(posedge clk) begin
        bus_left <= bus_left - 1;
        if (s_awready) s_awvalid <= 0;
        if (s_wready) s_wvalid <= 0;
        if (s_arready) s_arvalid <= 0;
        case (bus_state)
            IDLE: if (!rst && request != answer) begin
                bus_left <= request_kind == 2 ? request_cycles : BUS_TIMEOUT;
                s_awaddr <= REGISTER_BITS'(request_address);
                s_araddr <= REGISTER_BITS'(request_address);
                s_wdata <= request_data;
                case (request_kind)
                    0: begin bus_state <= READ; s_arvalid <= 1; end
                    1: begin bus_state <= WRITE; s_awvalid <= 1; s_wvalid <= 1; end
                    4: begin bus_state <= HOLD; hold <= 1; end
                    default: bus_state <= RUN;
                endcase
            end
            READ: if (s_rvalid) give(s_rdata, s_rresp);
            WRITE: if (s_bvalid) give(0, s_bresp);
            RUN: if (irq || bus_left == 0) give(0, 0);
            HOLD: if (bus_left == 0) begin bus_state <= WAKE; hold <= 0; end
            WAKE: if (!hold && !rst) give(0, 0);
            default: bus_state <= IDLE;
        endcase
        if ((bus_state == READ && !s_rvalid || bus_state == WRITE && !s_bvalid) && bus_left == 0)
            $fatal(1, "register bus: no answer in %0d cycles at offset 0x%0h", BUS_TIMEOUT, request_address);
        if (rst) begin
            s_awvalid <= 0;
            s_wvalid <= 0;
            s_arvalid <= 0;
        end
    end
