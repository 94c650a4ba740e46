"""Tests of the decoder service."""
