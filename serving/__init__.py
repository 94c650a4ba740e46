"""What all three servers share: settings, start-up and drain, errors, tensors on the wire, bundles, logs, metrics."""
