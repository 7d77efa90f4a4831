"""The caller's side of the AMQP transport."""
