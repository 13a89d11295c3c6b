"""What is remembered: tenants, keys, plans and what was used?"""
