"""What Qwen's vision families share: settings, patches and media, layers of the encoder, and how it is loaded."""
