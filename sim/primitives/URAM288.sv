// Behaviour of the AMD primitive as its user guide (UG573) describes it: 4096 words of 72 bits, in each cycle port A first,
// then port B; a write leaves the port's output. What is not modelled (output registers, cascade, reset) stops the simulation.
module URAM288 #(
  parameter BWE_MODE_A = "PARITY_INTERLEAVED", BWE_MODE_B = "PARITY_INTERLEAVED", EN_AUTO_SLEEP_MODE = "FALSE",
            IREG_PRE_A = "FALSE", IREG_PRE_B = "FALSE", OREG_A = "FALSE", OREG_B = "FALSE", RST_MODE_A = "SYNC", RST_MODE_B = "SYNC",
  parameter IS_CLK_INVERTED = 0
) (
  input CLK, input SLEEP,
  input [22:0] ADDR_A, input [8:0] BWE_A, input [71:0] DIN_A, input EN_A, input RDB_WR_A, input RST_A,
  input INJECT_DBITERR_A, input INJECT_SBITERR_A, output logic [71:0] DOUT_A,
  input [22:0] ADDR_B, input [8:0] BWE_B, input [71:0] DIN_B, input EN_B, input RDB_WR_B, input RST_B,
  input INJECT_DBITERR_B, input INJECT_SBITERR_B, output logic [71:0] DOUT_B
);
  logic [71:0] memory [0:4095];
  initial begin
    for (int i = 0; i < 4096; i++) memory[i] = 0;
    DOUT_A = 0;
    DOUT_B = 0;
    if (EN_AUTO_SLEEP_MODE != "FALSE" || IREG_PRE_A != "FALSE" || IREG_PRE_B != "FALSE" || OREG_A != "FALSE" || OREG_B != "FALSE"
        || IS_CLK_INVERTED != 0
        || (BWE_MODE_A != "PARITY_INTERLEAVED" && BWE_MODE_A != "PARITY_INDEPENDENT")
        || (BWE_MODE_B != "PARITY_INTERLEAVED" && BWE_MODE_B != "PARITY_INDEPENDENT"))
      $fatal(1, "URAM288: a mode that is not modelled");
  end

  // Byte i is bits 8i..8i+7; the parity byte is bits 64..71, one bit for each byte or enabled as a whole.
  function automatic [71:0] written(input [8:0] enables, input interleaved);
    for (int i = 0; i < 8; i++) begin
      written[8*i +: 8] = {8{enables[i]}};
      written[64+i] = interleaved ? enables[i] : enables[8];
    end
  endfunction
  wire [71:0] mask_a = written(BWE_A, BWE_MODE_A == "PARITY_INTERLEAVED");
  wire [71:0] mask_b = written(BWE_B, BWE_MODE_B == "PARITY_INTERLEAVED");

  /* verilator lint_off BLKSEQ */
  always @(posedge CLK) begin
    if (EN_A) begin
      if (RDB_WR_A) memory[ADDR_A[11:0]] = (memory[ADDR_A[11:0]] & ~mask_a) | (DIN_A & mask_a);
      else DOUT_A <= memory[ADDR_A[11:0]];
    end
    if (EN_B) begin
      if (RDB_WR_B) memory[ADDR_B[11:0]] = (memory[ADDR_B[11:0]] & ~mask_b) | (DIN_B & mask_b);
      else DOUT_B <= memory[ADDR_B[11:0]];
    end
    if (SLEEP || RST_A || RST_B || INJECT_DBITERR_A || INJECT_SBITERR_A || INJECT_DBITERR_B || INJECT_SBITERR_B
        || (EN_A && ADDR_A[22:12] != 0) || (EN_B && ADDR_B[22:12] != 0))
      $fatal(1, "URAM288: a mode that is not modelled");
  end
endmodule
