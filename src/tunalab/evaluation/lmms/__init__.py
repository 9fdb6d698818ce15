"""The paper's understanding benchmarks through lmms-eval (extra ``lmms``), on local copies of their data."""
