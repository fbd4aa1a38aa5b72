"""The benchmarks of the paper and of those who compare with it: which images, by which protocol, and what came out.

    benchmark.py   `Benchmark`: a set of images as its authors published it, and whether what lies here is that
    protocol.py    `Protocol`: what is done with a model and a benchmark, `Bench` (what it may use) and `Measurement` (what it gives)
    suite.py       `Task` (a benchmark with a protocol), `Suite` (several of them, and what is computed from all)
    results.py     `Result`: one line of a results file, and which lines may stand side by side
    published.py   what others published
    registry.py    every suite by its name

Each family of benchmarks is a module of its own beside them. What runs them is `jobs/suite.py`.
"""
