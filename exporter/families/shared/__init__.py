"""Qwen's families: the checkpoints that are accepted, the graphs of the decoder, and the settings around them.

`variant` names what differs between them. A family's own package, such as `qwen3_vl`, fills it in.
"""
