"""What page policies decide, asked one question after the other, and where two of them part."""
