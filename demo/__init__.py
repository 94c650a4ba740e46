"""The embedded demo: a small Qwen3-VL that can really see, and the recipe that trains it from nothing."""
