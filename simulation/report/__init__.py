"""BiT-L on N nodes: the tables that docs/scale.md quotes, from the models and simulations beside this folder."""
