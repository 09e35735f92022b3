"""The L4S-LLM paper's statements about stability as checks with numbers: `l4s-gym certify`."""
