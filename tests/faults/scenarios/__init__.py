"""The scenarios, by kind of fault."""
