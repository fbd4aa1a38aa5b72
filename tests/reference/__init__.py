"""Independent float64 references; nothing here imports torch or bigtransfer."""
