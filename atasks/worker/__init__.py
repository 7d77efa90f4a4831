"""Running: slots, held calls, execution, the streams that are sent, executors."""
