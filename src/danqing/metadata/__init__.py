"""What a picture says of itself."""
