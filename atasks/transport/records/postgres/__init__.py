"""Records in PostgreSQL: the tables, the connections, and the statements, for many records at a time."""
