"""The benchmarks: figures from one run, ratios side by side. `python -m bench` lists them."""
