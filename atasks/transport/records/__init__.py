"""Records: where the replies of calls that nobody awaits are kept."""
