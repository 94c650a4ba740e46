"""The engine on onnxruntime-genai: one request at a time, in a child process."""
