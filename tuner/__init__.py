"""Finds the fastest config of each spec: search, workers, benchmark, accuracy gate, studies, prediction."""
