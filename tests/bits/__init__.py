"""Tests of bits."""
