"""Decisions at the grain of experts: who is resident, who leaves, who comes early. No clock."""
