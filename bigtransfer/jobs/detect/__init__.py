"""`bit detect`: `finetune.py`, `evaluate.py` and `predict.py`, one `run(config)` each, and what they share: `measuring.py`."""
