"""Jobs that nobody watches: one file says what to do, and a record what was done."""
