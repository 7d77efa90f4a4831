#!/bin/sh
# Make sure that the tests will find a RabbitMQ: tests/broker.py says which, in which order.
set -eu
cd "$(dirname "$0")/.."
