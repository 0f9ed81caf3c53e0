"""Tests of sona.learn."""
