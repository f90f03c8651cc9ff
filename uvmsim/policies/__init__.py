"""Who stays, who goes, who is fetched early. A module here is found by its presence alone."""
