"""What the tests stand on: a base-contract server with faults, benchmark files, a writer process.

Nothing here imports the plugin, so a test that passes does not agree with the plugin's own reading of WIRE.md and
SCHEMAS.md by construction.

- `tests.kit.base_contract.BaseContractServer`: the predictive API as servers in use speak it; `tests.kit.faults.Fault`:
  what can go wrong with it
- `tests.kit.layouts.build` and `tests.kit.layouts.BenchmarkDatabase`: benchmark files
- `python -m tests.kit.writer`: somebody else's process, writing into a benchmark file or holding it
"""
