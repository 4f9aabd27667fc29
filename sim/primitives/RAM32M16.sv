// Behaviour of the AMD primitive as its library guide (UG974) describes it: 32 x 16 bits, seven read addresses, ADDRH writes.
module RAM32M16 (
  output [1:0] DOA, output [1:0] DOB, output [1:0] DOC, output [1:0] DOD, output [1:0] DOE, output [1:0] DOF, output [1:0] DOG,
  output [1:0] DOH,
  input [4:0] ADDRA, input [4:0] ADDRB, input [4:0] ADDRC, input [4:0] ADDRD, input [4:0] ADDRE, input [4:0] ADDRF,
  input [4:0] ADDRG, input [4:0] ADDRH,
  input [1:0] DIA, input [1:0] DIB, input [1:0] DIC, input [1:0] DID, input [1:0] DIE, input [1:0] DIF, input [1:0] DIG,
  input [1:0] DIH,
  input WCLK, input WE
);
  logic [1:0] a [32], b [32], c [32], d [32], e [32], f [32], g [32], h [32];
  always @(posedge WCLK) if (WE) begin
    a[ADDRH] <= DIA; b[ADDRH] <= DIB; c[ADDRH] <= DIC; d[ADDRH] <= DID;
    e[ADDRH] <= DIE; f[ADDRH] <= DIF; g[ADDRH] <= DIG; h[ADDRH] <= DIH;
  end
  assign DOA = a[ADDRA]; assign DOB = b[ADDRB]; assign DOC = c[ADDRC]; assign DOD = d[ADDRD];
  assign DOE = e[ADDRE]; assign DOF = f[ADDRF]; assign DOG = g[ADDRG]; assign DOH = h[ADDRH];
endmodule
