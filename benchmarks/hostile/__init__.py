"""What other people's files, servers and disks do to `bit`: campaigns of seeded, structured, hostile cases through its public doors.

    python -m benchmarks.hostile images --cases 10000
    python -m benchmarks.hostile images --one png.fields 17      # one case again, kept

Of every case: nothing but a BitError comes out, nothing hangs, at most 2 GB more memory is taken, no program is started, no address is
touched that was not asked for, no pickled code runs, nothing is written elsewhere, and no control character reaches the terminal.

| file | what it holds |
|---|---|
| `cases.py` | what a case and a campaign are |
| `guard.py` | what sees programs, connections, unpickling and writing while a case runs |
| `worker.py` | the process in which cases run, one after another |
| `supervisor.py` | the process that watches it: time, memory, crashes |
| `results.py` | groups of failures, and the results file |
| `mutate.py`, `jsons.py`, `zips.py`, ... | ways to spoil bytes, JSON, archives |
| `images/`, `weights/`, `datasets/`, ... | the campaigns: generators, and the doors that their cases go through |
"""
