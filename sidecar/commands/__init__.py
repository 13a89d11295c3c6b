"""Which commands does an administrator have? One module per noun."""
