"""The hub: the broker's place, in one of the processes of a host."""
