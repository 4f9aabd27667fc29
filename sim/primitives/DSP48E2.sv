// Behaviour of the AMD primitive as its user guide (UG579) describes it: pre-adder, 27 x 18 multiplier, 48-bit adder,
// registers and cascades. What is not modelled (SIMD, pattern detector, logic unit) stops the simulation.
/* verilator lint_off WIDTHEXPAND */ // text parameters of different lengths are compared
module DSP48E2 #(
  parameter ACASCREG = 1, ADREG = 1, ALUMODEREG = 1, AREG = 1, BCASCREG = 1, BREG = 1, CARRYINREG = 1, CARRYINSELREG = 1,
            CREG = 1, DREG = 1, INMODEREG = 1, MREG = 1, OPMODEREG = 1, PREG = 1,
  parameter AMULTSEL = "A", BMULTSEL = "B", PREADDINSEL = "A", A_INPUT = "DIRECT", B_INPUT = "DIRECT",
            USE_MULT = "MULTIPLY", USE_SIMD = "ONE48"
) (
  input CLK,
  input [29:0] A, input [29:0] ACIN, input [17:0] B, input [17:0] BCIN, input [47:0] C, input [26:0] D, input [47:0] PCIN,
  input CARRYIN, input CARRYCASCIN, input MULTSIGNIN,
  input [3:0] ALUMODE, input [2:0] CARRYINSEL, input [4:0] INMODE, input [8:0] OPMODE,
  input CEA1, input CEA2, input CEAD, input CEALUMODE, input CEB1, input CEB2, input CEC, input CECARRYIN, input CECTRL,
  input CED, input CEINMODE, input CEM, input CEP,
  input RSTA, input RSTALLCARRYIN, input RSTALUMODE, input RSTB, input RSTC, input RSTCTRL, input RSTD, input RSTINMODE,
  input RSTM, input RSTP,
  output [47:0] P, output [47:0] PCOUT, output [29:0] ACOUT, output [17:0] BCOUT, output [3:0] CARRYOUT
);
  logic [29:0] a_r, a1_r; logic [17:0] b_r, b1_r; logic [47:0] c_r, p_r; logic [26:0] d_r, ad_r; logic [44:0] m_r; logic [4:0] inmode_r;
  wire [29:0] a = A_INPUT == "CASCADE" ? ACIN : A;
  wire [17:0] b = B_INPUT == "CASCADE" ? BCIN : B;
  wire [29:0] a2 = AREG != 0 ? a_r : a;
  wire [17:0] b2 = BREG != 0 ? b_r : b;
  wire [47:0] c2 = CREG != 0 ? c_r : C;
  wire [26:0] d2 = DREG != 0 ? d_r : D;
  wire [4:0] inmode = INMODEREG != 0 ? inmode_r : INMODE;
  wire [26:0] pre = (inmode[2] ? d2 : 27'b0) + (inmode[1] ? 27'b0 : a2[26:0]);
  wire [26:0] ad = ADREG != 0 ? ad_r : pre;
  wire signed [26:0] factor = AMULTSEL == "AD" ? ad : a2[26:0];
  wire signed [44:0] product = factor * $signed(b2);
  wire signed [44:0] mul = MREG != 0 ? m_r : product;
  wire [47:0] xy = OPMODE[3:0] == 4'b0101 ? {{3{mul[44]}}, mul} : 48'b0;
  logic [47:0] z;
  always_comb case (OPMODE[6:4])
    3'b000: z = 0;
    3'b001: z = PCIN;
    3'b010: z = p_r;
    3'b011: z = c2;
    3'b101: z = $signed(p_r) >>> 17;
    3'b110: z = $signed(PCIN) >>> 17;
    default: z = 'x;
  endcase
  wire [47:0] w = OPMODE[8:7] == 2'b11 ? c2 : 48'b0;
  wire [47:0] sum = w + z + xy;
  always @(posedge CLK) begin
    if (CEA1) a1_r <= a;
    if (CEB1) b1_r <= b;
    if (CEA2) a_r <= AREG == 2 ? a1_r : a;
    if (CEB2) b_r <= BREG == 2 ? b1_r : b;
    if (CEC) c_r <= C;
    if (CED) d_r <= D;
    if (CEAD) ad_r <= pre;
    if (CEINMODE) inmode_r <= INMODE;
    if (CEM) m_r <= product;
    if (CEP) p_r <= sum;
    if ((OPMODE[8:7] != 0 && OPMODE[8:7] != 3) || (OPMODE[3:0] != 5 && OPMODE[3:0] != 0) || ALUMODE != 0 || CARRYINSEL != 0 || inmode[4:3] != 0
        || inmode[0] || CARRYIN || USE_SIMD != "ONE48" || BMULTSEL != "B" || PREADDINSEL != "A"
        || {RSTA, RSTB, RSTC, RSTD, RSTM, RSTP, RSTCTRL, RSTINMODE, RSTALUMODE, RSTALLCARRYIN} != 0)
      $fatal(1, "DSP48E2: a mode that is not modelled");
  end
  assign P = PREG != 0 ? p_r : sum;
  assign PCOUT = P;
  assign ACOUT = a2;
  assign BCOUT = b2;
  assign CARRYOUT = 0;
endmodule
/* verilator lint_on WIDTHEXPAND */
