"""A server of many requests, in virtual time, and what its clients would measure."""
