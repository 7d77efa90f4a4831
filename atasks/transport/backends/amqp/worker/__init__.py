"""The worker's side of the AMQP transport."""
