// A design of ours beside a set of AXI properties of somebody else's, by its port names (those of ZipCPU's wb2axip).
//
// Whoever attaches it defines PROPERTIES, the module's name, and PARAMETERS, what stands in its #(...). MASTER: the memory port (reader and writer) beside
// properties of an AXI4 master; else the registers beside properties of an AXI4-Lite slave. Everything but the port itself may have any value in any cycle.

`default_nettype none

`ifdef MASTER
module attached #(parameter AW = `ADDRESS_BITS, DW = `DATA_BITS, IW = `ID_BITS) (
	input wire clk, input wire [`FREE-1:0] free,
	input wire awready, wready, bvalid, arready, rvalid, rlast,
	input wire [IW-1:0] bid, rid, input wire [1:0] bresp, rresp, input wire [DW-1:0] rdata
);
	reg started = 0;
	always @(posedge clk) started <= 1;

	wire awvalid, wvalid, bready, arvalid, rready, wlast, awlock, arlock;
	wire [IW-1:0] awid, arid;
	wire [AW-1:0] awaddr, araddr;
	wire [7:0] awlen, arlen;
	wire [2:0] awsize, arsize, awprot, arprot;
	wire [1:0] awburst, arburst;
	wire [3:0] awcache, arcache, awqos, arqos;
	wire [DW-1:0] wdata;
	wire [DW/8-1:0] wstrb;

	design design (
		.clk(clk), .rst(!started), .free(free),
		.axi_awvalid(awvalid), .axi_awready(awready), .axi_awid(awid), .axi_awaddr(awaddr), .axi_awlen(awlen), .axi_awsize(awsize), .axi_awburst(awburst),
		.axi_awlock(awlock), .axi_awcache(awcache), .axi_awprot(awprot), .axi_awqos(awqos),
		.axi_wvalid(wvalid), .axi_wready(wready), .axi_wdata(wdata), .axi_wstrb(wstrb), .axi_wlast(wlast),
		.axi_bvalid(bvalid), .axi_bready(bready), .axi_bid(bid), .axi_bresp(bresp),
		.axi_arvalid(arvalid), .axi_arready(arready), .axi_arid(arid), .axi_araddr(araddr), .axi_arlen(arlen), .axi_arsize(arsize), .axi_arburst(arburst),
		.axi_arlock(arlock), .axi_arcache(arcache), .axi_arprot(arprot), .axi_arqos(arqos),
		.axi_rvalid(rvalid), .axi_rready(rready), .axi_rdata(rdata), .axi_rresp(rresp), .axi_rlast(rlast), .axi_rid(rid)
	);

	`PROPERTIES #(.C_AXI_ID_WIDTH(IW), .C_AXI_DATA_WIDTH(DW), .C_AXI_ADDR_WIDTH(AW) `PARAMETERS) properties (
		.i_clk(clk), .i_axi_reset_n(started),
		.i_axi_awvalid(awvalid), .i_axi_awready(awready), .i_axi_awid(awid), .i_axi_awaddr(awaddr), .i_axi_awlen(awlen), .i_axi_awsize(awsize), .i_axi_awburst(awburst),
		.i_axi_awlock(awlock), .i_axi_awcache(awcache), .i_axi_awprot(awprot), .i_axi_awqos(awqos),
		.i_axi_wvalid(wvalid), .i_axi_wready(wready), .i_axi_wdata(wdata), .i_axi_wstrb(wstrb), .i_axi_wlast(wlast),
		.i_axi_bvalid(bvalid), .i_axi_bready(bready), .i_axi_bid(bid), .i_axi_bresp(bresp),
		.i_axi_arvalid(arvalid), .i_axi_arready(arready), .i_axi_arid(arid), .i_axi_araddr(araddr), .i_axi_arlen(arlen), .i_axi_arsize(arsize), .i_axi_arburst(arburst),
		.i_axi_arlock(arlock), .i_axi_arcache(arcache), .i_axi_arprot(arprot), .i_axi_arqos(arqos),
		.i_axi_rvalid(rvalid), .i_axi_rready(rready), .i_axi_rdata(rdata), .i_axi_rresp(rresp), .i_axi_rlast(rlast), .i_axi_rid(rid)
	);
endmodule
`else
module attached #(parameter AW = `ADDRESS_BITS, DW = `DATA_BITS) (
	input wire clk, input wire [`FREE-1:0] free,
	input wire awvalid, wvalid, bready, arvalid, rready,
	input wire [AW-1:0] awaddr, araddr, input wire [2:0] awprot, arprot, input wire [DW-1:0] wdata, input wire [DW/8-1:0] wstrb
);
	reg started = 0;
	always @(posedge clk) started <= 1;

	wire awready, wready, bvalid, arready, rvalid;
	wire [1:0] bresp, rresp;
	wire [DW-1:0] rdata;

	design design (
		.clk(clk), .rst(!started), .free(free),
		.axi_awvalid(awvalid), .axi_awready(awready), .axi_awaddr(awaddr), .axi_awprot(awprot),
		.axi_wvalid(wvalid), .axi_wready(wready), .axi_wdata(wdata), .axi_wstrb(wstrb), .axi_bvalid(bvalid), .axi_bready(bready), .axi_bresp(bresp),
		.axi_arvalid(arvalid), .axi_arready(arready), .axi_araddr(araddr), .axi_arprot(arprot),
		.axi_rvalid(rvalid), .axi_rready(rready), .axi_rdata(rdata), .axi_rresp(rresp)
	);

	`PROPERTIES #(.C_AXI_DATA_WIDTH(DW), .C_AXI_ADDR_WIDTH(AW) `PARAMETERS) properties (
		.i_clk(clk), .i_axi_reset_n(started),
		.i_axi_awvalid(awvalid), .i_axi_awready(awready), .i_axi_awaddr(awaddr), .i_axi_awprot(awprot),
		.i_axi_wvalid(wvalid), .i_axi_wready(wready), .i_axi_wdata(wdata), .i_axi_wstrb(wstrb), .i_axi_bvalid(bvalid), .i_axi_bready(bready), .i_axi_bresp(bresp),
		.i_axi_arvalid(arvalid), .i_axi_arready(arready), .i_axi_araddr(araddr), .i_axi_arprot(arprot),
		.i_axi_rvalid(rvalid), .i_axi_rready(rready), .i_axi_rdata(rdata), .i_axi_rresp(rresp)
	);
endmodule
`endif
