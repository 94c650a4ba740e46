"""What families of dense models share: the checkpoints that are accepted, the graphs of the decoder, the settings.

`variant` names what differs between them. A family's own package, such as `qwen3_vl`, fills it in.
"""
