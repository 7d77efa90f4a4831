"""The broker: connections, channels, publishes with confirms, names of queues."""
