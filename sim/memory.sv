// AXI4 memory for all ports of an accelerator. The behaviour is in memory.cpp, over a memory-mapped file that the host
// shares; one call a cycle. Every output is a register. A broken protocol rule ends the simulation.
`timescale 1ns / 1ps

module axi_memory #(
    parameter int PORTS = 1,
    parameter int PORT_BYTES = 16,
    parameter int ADDRESS_WIDTH = 40,
    parameter int ID_WIDTH = 4
) (
    input logic clk,
    input logic rst,

    input  logic [PORTS-1:0] awvalid,
    output logic [PORTS-1:0] awready,
    input  logic [PORTS-1:0][ID_WIDTH-1:0] awid,
    input  logic [PORTS-1:0][ADDRESS_WIDTH-1:0] awaddr,
    input  logic [PORTS-1:0][7:0] awlen,
    input  logic [PORTS-1:0][2:0] awsize,
    input  logic [PORTS-1:0][1:0] awburst,

    input  logic [PORTS-1:0] wvalid,
    output logic [PORTS-1:0] wready,
    input  logic [PORTS-1:0][PORT_BYTES*8-1:0] wdata,
    input  logic [PORTS-1:0][PORT_BYTES-1:0] wstrb,
    input  logic [PORTS-1:0] wlast,

    output logic [PORTS-1:0] bvalid,
    input  logic [PORTS-1:0] bready,
    output logic [PORTS-1:0][ID_WIDTH-1:0] bid,
    output logic [PORTS-1:0][1:0] bresp,

    input  logic [PORTS-1:0] arvalid,
    output logic [PORTS-1:0] arready,
    input  logic [PORTS-1:0][ID_WIDTH-1:0] arid,
    input  logic [PORTS-1:0][ADDRESS_WIDTH-1:0] araddr,
    input  logic [PORTS-1:0][7:0] arlen,
    input  logic [PORTS-1:0][2:0] arsize,
    input  logic [PORTS-1:0][1:0] arburst,

    output logic [PORTS-1:0] rvalid,
    input  logic [PORTS-1:0] rready,
    output logic [PORTS-1:0][ID_WIDTH-1:0] rid,
    output logic [PORTS-1:0][PORT_BYTES*8-1:0] rdata,
    output logic [PORTS-1:0][1:0] rresp,
    output logic [PORTS-1:0] rlast
);
    localparam int IN = 352, OUT = 160;  // bits of a port: kInWords and kOutWords of memory.cpp

    import "DPI-C" context function int tellme_memory_cycle(
        input int count,
        input int port_bytes,
        input bit reset,
        input bit [PORTS*IN-1:0] request,
        output bit [PORTS*OUT-1:0] response
    );

    bit [PORTS*IN-1:0] request;
    bit [PORTS*OUT-1:0] response, drive;

    for (genvar i = 0; i < PORTS; i++) begin : port
        assign request[i*IN+:IN] = {
            128'(wdata[i]),
            32'(wstrb[i]),
            6'b0, arburst[i], awburst[i], arsize[i], awsize[i], 8'(arid[i]), 8'(awid[i]),
            64'(araddr[i]),
            64'(awaddr[i]),
            8'b0, arlen[i], awlen[i], 2'b0, wlast[i], rready[i], arvalid[i], bready[i], wvalid[i], awvalid[i]
        };
        assign awready[i] = drive[i*OUT];
        assign wready[i] = drive[i*OUT+1];
        assign bvalid[i] = drive[i*OUT+2];
        assign arready[i] = drive[i*OUT+3];
        assign rvalid[i] = drive[i*OUT+4];
        assign rlast[i] = drive[i*OUT+5];
        assign bresp[i] = drive[i*OUT+6+:2];
        assign rresp[i] = drive[i*OUT+8+:2];
        assign bid[i] = drive[i*OUT+16+:ID_WIDTH];
        assign rid[i] = drive[i*OUT+24+:ID_WIDTH];
        assign rdata[i] = drive[i*OUT+32+:PORT_BYTES*8];
    end

    always @(posedge clk) begin
        if (tellme_memory_cycle(PORTS, PORT_BYTES, rst, request, response) != 0)
            $fatal(1, "memory model: see the message above");
        drive <= response;
    end
endmodule
