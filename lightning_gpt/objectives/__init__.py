"""What is learnt from preferences and rewards, as pure functions of tensors with explicit masks, in float32."""
