"""Tests of triton."""
