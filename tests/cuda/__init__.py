"""Tests of cuda."""
