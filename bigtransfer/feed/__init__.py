"""How the images of a set reach the model: their order, random crops, caches, worker processes, batches."""
