"""What people look at: tables and progress. Numbers come from `uvmsim.runs`, never from here."""
