"""An LLM as a decision transformer for L4S: state encoders, a backbone with LoRA, a head of three logits."""
