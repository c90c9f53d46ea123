"""The engines, side by side: one machine, the same random weights, the same tokens, interleaved."""
