"""What people look at: tables and progress. Numbers come from `uvmsim.results`, never from here."""
