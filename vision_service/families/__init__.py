"""The model families whose encoders are served: a package for each."""
