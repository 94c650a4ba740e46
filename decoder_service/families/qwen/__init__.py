"""What Qwen's vision families share: the layout of media in a prompt."""
