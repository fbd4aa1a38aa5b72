"""Pre-training past our machines (300 million images, R152x4, N nodes): models of compute and network, simulations of input and failures.

`python -m simulation.report` runs everything and writes the tables that docs/scale.md quotes.

No figure of a GPU, a network or an object store here is a measurement of ours. What is assumed stands in `assumptions.py`, each value
with its source. What is computed follows from that and from `bigtransfer.catalog`; what is measured (`own.measure_*`) is our own Python
on one core. Random numbers are seeded.

| file | what it answers |
|---|---|
| `assumptions.py` | which GPU, network, object store, file system, failure rates |
| `compute.py` | how long a step takes: arithmetic, and the network behind it |
| `reading.py` | how long the job waits for shards from an object store |
| `decoding.py` | how long it waits for the slowest of thousands of decoding workers |
| `checkpoints.py` | what saving and loading cost, and how often to save, in closed form |
| `restarts.py` | how far a job with failing nodes comes |
| `order.py` | whether our order of images holds through any restarts: the real code, replayed |
| `own.py` | what our own Python costs, measured |
| `report/` | the tables, one file a section |
"""
