"""What the front end and the worker share: the records, the errors, the Redis store, the queue."""
