// Behaviour of the AMD primitive as its user guide (UG579) describes it: pre-adder, 27 x 18 multiplier, 48-bit adder,
// registers and cascades; registers start at 0, as the chip's do. `refused` tells what is not modelled (A1 and B1 as
// operands, subtraction, carries, SIMD, P and A:B in X, P and RND in W, resets); a clock edge then stops the simulation. Ports
// of what is not modelled at all (pattern detector, wide XOR, carry outputs) are left out, so that using them does not build.
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
  output [47:0] P, output [47:0] PCOUT, output [29:0] ACOUT, output [17:0] BCOUT
);
  logic [29:0] a1_r = 0, a2_r = 0;
  logic [17:0] b1_r = 0, b2_r = 0;
  logic [47:0] c_r = 0, p_r = 0;
  logic [26:0] d_r = 0, ad_r = 0;
  logic [44:0] m_r = 0;
  logic [4:0] inmode_r = 0;
  logic [8:0] opmode_r = 0;

  wire [29:0] a = A_INPUT == "CASCADE" ? ACIN : A;
  wire [17:0] b = B_INPUT == "CASCADE" ? BCIN : B;
  wire [29:0] a2 = AREG != 0 ? a2_r : a;
  wire [17:0] b2 = BREG != 0 ? b2_r : b;
  wire [47:0] c = CREG != 0 ? c_r : C;
  wire [26:0] d = DREG != 0 ? d_r : D;
  wire [4:0] inmode = INMODEREG != 0 ? inmode_r : INMODE;
  wire [8:0] opmode = OPMODEREG != 0 ? opmode_r : OPMODE;

  // INMODE[1] turns A off, for the multiplier as for the pre-adder; INMODE[2] turns D on.
  wire [26:0] gated = inmode[1] ? 27'b0 : a2[26:0];
  wire [26:0] pre = (inmode[2] ? d : 27'b0) + gated;
  wire [26:0] ad = ADREG != 0 ? ad_r : pre;
  wire signed [26:0] factor = AMULTSEL == "AD" ? ad : gated;
  wire signed [44:0] product = factor * $signed(b2);
  wire signed [44:0] mul = MREG != 0 ? m_r : product;

  wire [47:0] xy = opmode[3:0] == 4'b0101 ? {{3{mul[44]}}, mul} : 48'b0;
  wire [47:0] w = opmode[8:7] == 2'b11 ? c : 48'b0;
  logic [47:0] z;
  always_comb case (opmode[6:4])
    3'b000: z = 0;
    3'b001: z = PCIN;
    3'b010: z = p_r;
    3'b011: z = c;
    3'b101: z = $signed(PCIN) >>> 17;
    3'b110: z = $signed(p_r) >>> 17;
    default: z = 'x;
  endcase
  wire [47:0] sum = w + z + xy;

  wire refused = !(
    (AREG == ACASCREG || (AREG == 2 && ACASCREG == 1)) && (BREG == BCASCREG || (BREG == 2 && BCASCREG == 1))
    && AREG <= 2 && BREG <= 2 && ADREG <= 1 && CREG <= 1 && DREG <= 1 && INMODEREG <= 1 && MREG <= 1 && OPMODEREG <= 1
    && PREG <= 1
    && (AMULTSEL == "A" || AMULTSEL == "AD") && BMULTSEL == "B" && PREADDINSEL == "A" && USE_MULT == "MULTIPLY"
    && USE_SIMD == "ONE48" && (A_INPUT == "DIRECT" || A_INPUT == "CASCADE") && (B_INPUT == "DIRECT" || B_INPUT == "CASCADE")
    && (inmode & 5'b11001) == 0
    && (opmode[3:0] == 4'b0101 || opmode[3:0] == 4'b0000) && (opmode[8:7] == 2'b00 || opmode[8:7] == 2'b11)
    && opmode[6:4] != 3'b100 && opmode[6:4] != 3'b111
    && !(PREG == 0 && (opmode[6:4] == 3'b010 || opmode[6:4] == 3'b110))
    && ALUMODE == 0 && CARRYINSEL == 0 && !CARRYIN
    && {RSTA, RSTB, RSTC, RSTD, RSTM, RSTP, RSTCTRL, RSTINMODE, RSTALUMODE, RSTALLCARRYIN} == 0
  );

  always @(posedge CLK) begin
    if (CEA1) a1_r <= a;
    if (CEB1) b1_r <= b;
    if (CEA2) a2_r <= AREG == 2 ? a1_r : a;
    if (CEB2) b2_r <= BREG == 2 ? b1_r : b;
    if (CEC) c_r <= C;
    if (CED) d_r <= D;
    if (CEAD) ad_r <= pre;
    if (CEINMODE) inmode_r <= INMODE;
    if (CECTRL) opmode_r <= OPMODE;
    if (CEM) m_r <= product;
    if (CEP) p_r <= sum;
    if (refused) $fatal(1, "DSP48E2: a mode that is not modelled");
  end
  assign P = PREG != 0 ? p_r : sum;
  assign PCOUT = P;
  assign ACOUT = AREG == 2 && ACASCREG == 1 ? a1_r : a2;
  assign BCOUT = BREG == 2 && BCASCREG == 1 ? b1_r : b2;
endmodule
/* verilator lint_on WIDTHEXPAND */
