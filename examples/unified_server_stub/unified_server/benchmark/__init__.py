"""The Benchmark API: results in and out of a DuckDB file that benchmark runners write too."""
