"""What comes from outside is distrusted here: addresses, pictures."""
