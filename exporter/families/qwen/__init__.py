"""What the encoders of Qwen's vision families share."""
