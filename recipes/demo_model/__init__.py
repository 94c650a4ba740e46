"""Trains the demo checkpoint: `python -m recipes.demo_model.train`. What is drawn and asked is in `demo`."""
