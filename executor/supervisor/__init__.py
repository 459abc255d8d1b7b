"""The process with the keys: takes deliveries, runs them in sandboxes, settles them."""
